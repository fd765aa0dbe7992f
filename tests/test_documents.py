"""The generated tables, the paths and the links of the documents match the repository."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import click
import pytest

from docs.tables.architecture import FOLDERS, PACKAGES, find_arrows, find_reachable
from docs.tables.conformance import RESULTS
from docs.tables.documents import DRAWINGS, TABLES, renew
from docs.tables.drawing import draw_packages, find_levels
from evalmode.cli.main import cli
from evalmode.images.formats import SERVED_FORMATS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for name in ("benchmarks", "deploy", "docs", "examples") for path in (ROOT / name).rglob("*.md")),
    ]
)


@pytest.mark.parametrize("document", sorted({document for document, _ in TABLES}))
def test_tables_are_up_to_date(document: str) -> None:
    """If this fails, run ``python -m docs.tables``."""
    text = (ROOT / document).read_text()
    assert renew(document, text) == text


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_up_to_date(name: str) -> None:
    """If this fails, run ``python -m docs.tables``."""
    assert (ROOT / name).read_text() == DRAWINGS[name]()


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_conformance_table_has_the_rules_of_the_suite() -> None:
    """If this fails, run the suite again as docs/reference/conformance.md describes."""
    suite = ast.parse((ROOT / "tests/conformance/test_open_inference.py").read_text())
    functions = (node for node in suite.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
    rules = {ast.get_docstring(function) for function in functions}
    results = {path.stem: json.loads(path.read_text())["rules"] for path in RESULTS.glob("*.json")}
    assert results["evalmode"].keys() == rules
    assert set(results["evalmode"].values()) == {"passed"}
    for outcomes in results.values():
        assert outcomes.keys() <= rules


def test_the_decoding_table_lists_the_supported_formats() -> None:
    names = [{"WEBP": "WebP"}.get(one.name, one.name) for one in SERVED_FORMATS]
    assert f"a format other than {', '.join(names)}" in (ROOT / "docs/reference/images.md").read_text()


def test_every_package_and_folder_of_the_tree_exists() -> None:
    places = [*(ROOT / name.replace(".", "/") for name in PACKAGES), *(ROOT / name for name in FOLDERS)]
    assert [place for place in places if not place.is_dir() and not place.with_suffix(".py").is_file()] == []


def test_the_tree_shows_every_folder_of_the_repository() -> None:
    tracked = subprocess.run(["git", "ls-tree", "-d", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    shown = {name for name in PACKAGES if "." not in name} | FOLDERS.keys()
    assert {name for name in tracked.stdout.split() if not name.startswith(".")} <= shown


def test_arrows_that_follow_from_others_are_not_drawn() -> None:
    imports = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": {"c"}}
    assert find_reachable(imports, "a") == {"b", "c", "d"}
    assert find_reachable(imports, "c") == set()
    arrows = find_arrows()
    assert "evalmode.images" in arrows["evalmode.artifact"]
    assert "evalmode.errors" not in arrows["evalmode.artifact"]  # through evalmode.images


def test_a_package_is_drawn_above_those_that_it_imports() -> None:
    graph = {"evalmode.a": {"evalmode.b", "evalmode.c"}, "evalmode.b": {"evalmode.c"}, "evalmode.c": set()}
    assert find_levels(graph) == {"evalmode.a": 2, "evalmode.b": 1, "evalmode.c": 0}
    boxes = re.findall(r'y="([\d.]+)" font-size="14" fill="#fff" text-anchor="middle">(\w+)<', draw_packages(graph))
    assert [name for _, name in sorted((float(y), name) for y, name in boxes)] == ["a", "b", "c"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_targets_of_links_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            linked = document.parent / path if path else document
            assert linked.exists(), f"{document.name} links to {target}"
            headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).strip().replace(" ", "-") for h in _headings(linked)}
            assert not anchor or anchor in headings, f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_rows_of_tables_have_the_cells_of_their_head(document: Path) -> None:
    """A vertical line within a cell needs a backslash, also in code."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        head, *rows = (len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines())
        assert set(rows) == {head}, f"{document.name}: {table.splitlines()[0]}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_code_blocks_have_their_options(document: Path) -> None:
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", document.read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    for line in (line.strip() for line in lines if document.name != "CHANGELOG.md"):
        name, *words = re.sub(r"#.*", "", line.removeprefix("evalmode ")).split() or [""]
        command = cli.get_command(click.Context(cli), name) if line.startswith("evalmode ") else None
        if command:
            known = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)} | {"--help"}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_and_modules_exist(document: Path) -> None:
    text = document.read_text()
    folders = "benchmarks|deploy|docker|docs|evalmode|examples|protos|serving|tests|training"
    paths = re.findall(rf"\b(?:{folders})/[\w./-]+\.\w+", text)
    if document.name in ("CHANGELOG.md", "artifact.md"):  # former modules; metadata keys such as evalmode.labels
        names = []
    else:
        names = re.findall(r"`((?:evalmode|serving|training)(?:\.[a-z_]+)+)`", text)
    assert {path for path in paths if not (ROOT / path).exists() and "DATE" not in path} == set()
    assert {name for name in names if not _is_module(name)} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_benchmarks_exist(document: Path) -> None:
    names = set(re.findall(r"\bpython -m (benchmarks(?:\.\w+)+)", document.read_text()))
    assert {name for name in names if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()} == set()


def _is_module(name: str) -> bool:
    """Whether a name is a module, a package, or a name that one of them defines."""
    place = ROOT / name.replace(".", "/")
    if place.is_dir() or place.with_suffix(".py").is_file():
        return True
    outer, last = place.parent, place.name
    source = outer / "__init__.py" if outer.is_dir() else outer.with_suffix(".py")
    return source.is_file() and re.search(rf"\b{last}\b", source.read_text()) is not None


def _headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if path.suffix == ".md" else []
