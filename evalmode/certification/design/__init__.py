"""The design of the HTML pages: one style (``page.css``) and one set of parts (``parts.html.j2``) for all of them."""
