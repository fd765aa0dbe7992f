"""Documents say what the code does: tables, trees and links."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from serving.limits import IMAGE_FORMATS, Limits
from serving.services.status import CODES, INTERNAL_REASON, RETRY_AFTER_S, reason_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def rows(document: str, first_cell: str) -> list[list[str]]:
    """The rows of the tables in a document whose first cell matches."""
    lines = (ROOT / document).read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if re.fullmatch(first_cell, row[0])]


def test_the_readme_shows_the_limits_as_they_are() -> None:
    expected = [
        [f"`--{limit.name.replace('_', '-')}`", str(limit.default), limit.metadata["what"], limit.metadata["beyond"]]
        for limit in fields(Limits)
    ]
    assert rows("README.md", r"`--max-.*`|`--grace`|`--lame-duck`") == expected


def test_the_wire_protocol_shows_every_reason() -> None:
    expected = [
        [
            f"`{reason_of(error)}`",
            code,
            f"after {RETRY_AFTER_S[error]} s" if error in RETRY_AFTER_S else "no",
            (error.__doc__ or "").strip(),
        ]
        for error, code in CODES.items()
    ]
    shown = rows("docs/wire-protocol.md", r"`[A-Z_]+`")
    assert shown[:-1] == expected
    assert shown[-1][:2] == [f"`{INTERNAL_REASON}`", "INTERNAL"]


def test_the_decoding_table_names_the_formats() -> None:
    names = [{"WEBP": "WebP"}.get(name, name) for name in IMAGE_FORMATS]
    assert f"a format other than {', '.join(names)}" in (ROOT / "docs/architecture.md").read_text()


def test_everything_in_the_readmes_tree_exists() -> None:
    tree = (ROOT / "README.md").read_text().partition("## Where things are")[2].split("```")[1]
    folder = ROOT
    for line in filter(None, tree.splitlines()):
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        folder = folder if line.startswith(" ") else ROOT / names[0]
        missing = [name for name in names if not ((folder if line.startswith(" ") else ROOT) / name).exists()]
        assert not missing, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            linked = document.parent / path if path else document
            assert linked.exists(), f"{document.name} links to {target}"
            headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).strip().replace(" ", "-") for h in _headings(linked)}
            assert not anchor or anchor in headings, f"{document.name} links to {target}"


def _headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if path.suffix == ".md" else []
