"""The site of the documents: its sections in every environment; its built pages in that of ``make docs``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import evalmode
from docs import site
from evalmode.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


def list_pages(entries: list[Any]) -> Iterator[str]:
    """The pages of a navigation, and those of the sections in it."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for pages in entry.values():
                yield from list_pages(pages)


def test_every_page_is_in_one_section() -> None:
    listed = sorted(list_pages(site.list_navigation(PAGES)))
    assert listed == sorted([*PAGES, *site.OUTSIDE.values()])


def test_the_decisions_are_a_part_of_the_project() -> None:
    name, entries = site.list_navigation(PAGES)[-1].popitem()
    assert (name, entries[: len(site.OUTSIDE)]) == ("Project", list(site.OUTSIDE.values()))
    assert [section["Decisions"][0] for section in entries[len(site.OUTSIDE) :]] == ["decisions/index.md"]


def test_a_page_that_is_in_no_section_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no section of docs/site.py has the pages lost\.md"):
        site.list_navigation([*PAGES, "lost.md"])


def test_a_section_that_names_a_missing_page_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"names operating\.md, which is not a page"):
        site.list_navigation([page for page in PAGES if page != "operating.md"])


def test_the_reference_has_every_public_name_once() -> None:
    named = re.findall(r"^::: evalmode\.(\w+)$", (ROOT / "docs/reference/api.md").read_text(), re.M)
    assert sorted(named) == sorted(evalmode.__all__)


def test_every_command_has_its_options() -> None:
    assert re.findall(r"^## (.+)$", (ROOT / "docs/reference/options.md").read_text(), re.M) == list(COMMANDS)


class Page(HTMLParser):
    """A page: what it links to and loads, and the names of its places."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = {name: value or "" for name, value in attrs}
        self.places |= {facts[name] for name in ("id", "name") if name in facts}
        if tag == "a" and "href" in facts:
            self.links.append(facts["href"])
        elif tag in ("img", "script", "source", "link") and facts.get("rel") != "canonical":
            self.loads += [facts[name] for name in ("src", "srcset", "href") if name in facts]


@pytest.fixture(scope="module")
def built() -> dict[Path, Page]:
    """The pages of the site, which ``make docs`` has just built strictly."""
    assert (site.BUILT / "index.html").is_file(), "make docs builds the site"
    return {path: Page(path) for path in site.BUILT.rglob("*.html") if "files" not in path.parts}


def follow(pages: dict[Path, Page]) -> Iterator[tuple[str, str]]:
    """Every link or file of a page that does not exist."""
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("data:"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            known = pages[target].places if target in pages else set()
            if not target.is_file() or (parts.fragment and target in pages and unquote(parts.fragment) not in known):
                yield path.relative_to(site.BUILT).as_posix(), link


@pytest.mark.docs
def test_links_and_files_of_the_built_pages_exist(built: dict[Path, Page]) -> None:
    assert len(built) > len(PAGES)
    assert list(follow({path: page for path, page in built.items() if path.name != "404.html"})) == []


@pytest.mark.docs
def test_pages_load_nothing_from_other_servers(built: dict[Path, Page]) -> None:
    loads = {load for page in built.values() for load in page.loads}
    assert {load for load in loads if urlsplit(load).netloc} == set()
    styles = [path.read_text("utf-8") for path in site.BUILT.rglob("*.css")]
    assert styles
    assert [found for text in styles for found in re.findall(r"url\(['\"]?(?:https?:)?//[^)]+\)", text)] == []


@pytest.mark.docs
def test_the_search_finds_every_page(built: dict[Path, Page]) -> None:
    index = (site.BUILT / "search.json").read_text("utf-8")
    assert [page for page in PAGES if page != "index.md" and page.replace(".md", ".html") not in index] == []


@pytest.mark.docs
def test_the_reference_shows_the_docstrings(built: dict[Path, Page]) -> None:
    page = built[site.BUILT / "reference/api.html"]
    assert {f"evalmode.{name}" for name in evalmode.__all__} <= page.places
