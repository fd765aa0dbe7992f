"""The report of a training, ``report.html``: findings, charts and pictures on one page, written by ``page``."""
