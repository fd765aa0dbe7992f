"""Writes every table and drawing into the documents: ``python -m docs.tables``."""

from __future__ import annotations

from docs.tables import ROOT
from docs.tables.documents import DRAWINGS, TABLES, renew


def main() -> None:
    """Write every table into its document."""
    for document in {document for document, _ in TABLES}:
        path = ROOT / document
        path.write_text(renew(document, path.read_text()))
    for name, draw_file in DRAWINGS.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(draw_file())


if __name__ == "__main__":
    main()
