"""The tutorials are run as they stand there, and show what their commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.pages import ROOT, read_blocks, run_page

TUTORIALS = ROOT / "docs/tutorials"
PAGES = {path.name: path for path in sorted(TUTORIALS.glob("*.md"))}


def test_every_output_of_a_tutorial_is_shown_behind_its_command() -> None:
    for path in PAGES.values():
        blocks = read_blocks(path.read_text("utf-8"))
        assert [block.code for block in blocks if block.language == "text" and not block.code] == []
        assert len([block for block in blocks if block.language == "text"]) >= 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_tutorial_shows_what_happens(name: str, tmp_path: Path) -> None:
    differences = run_page(PAGES[name].read_text("utf-8"), tmp_path)
    assert not differences, "\n".join(differences)
