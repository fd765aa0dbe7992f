"""Documents say what the code does: tables, trees and links."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from docs.tables import RESULTS, TABLES, renew
from evalmode.images.formats import IMAGE_FORMATS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("document", sorted({document for document, _ in TABLES}))
def test_tables_are_as_the_code_has_them(document: str) -> None:
    """If not: python docs/tables.py."""
    text = (ROOT / document).read_text()
    assert renew(document, text) == text


def test_the_conformance_table_has_the_rules_of_the_suite() -> None:
    """If not: run the suite again, docs/conformance.md says how."""
    suite = ast.parse((ROOT / "tests/conformance/test_open_inference.py").read_text())
    functions = (node for node in suite.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
    rules = {ast.get_docstring(function) for function in functions}
    results = {path.stem: json.loads(path.read_text())["rules"] for path in RESULTS.glob("*.json")}
    assert results["evalmode"].keys() == rules
    assert set(results["evalmode"].values()) == {"passed"}
    for told in results.values():
        assert told.keys() <= rules


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
