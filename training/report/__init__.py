"""``report.html``: what a run has learned, on one page. ``page`` writes it, from findings, charts and pictures."""
