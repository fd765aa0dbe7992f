"""Builds the site of the documents: ``make docs``, or ``python docs/site.py`` with the extra ``docs``.

The pages are the documents of the repository as they stand. Two things differ: links to files outside ``docs`` lead to
copies of these files, so that the site is complete without a network, and code follows the docstrings where a page has
``:::``. A warning of the builder, such as a link to a missing page or heading, is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
STAGED = ROOT / ".site"  # what the builder reads
BUILT = ROOT / "site"
# Section -> its pages in their order. A pattern takes all pages that match and that no earlier entry took.
NAVIGATION: dict[str, tuple[str, ...]] = {
    "Home": ("index.md",),
    "Tutorials": (
        "tutorials/photos.md",
        "tutorials/foreign.md",
        "tutorials/break-it.md",
        "tutorials/*.md",
    ),
    "How-to": (
        "installing.md",
        "training.md",
        "how-to/report.md",
        "how-to/small-data.md",
        "how-to/certify.md",
        "how-to/gate.md",
        "operating.md",
        "how-to/calling.md",
        "how-to/repository.md",
        "how-to/containers.md",
        "how-to/tls-and-tokens.md",
        "how-to/sizing.md",
        "how-to/gpus.md",
        "how-to/monitoring.md",
        "how-to/proxies.md",
        "kubernetes.md",
        "scaling.md",
        "how-to/troubleshooting.md",
        "how-to/*.md",
    ),
    "Reference": (
        "reference/commands.md",
        "reference/options.md",
        "reference/configuration.md",
        "reference/networks.md",
        "reference/python.md",
        "reference/api.md",
        "reference/errors.md",
        "reference/metrics.md",
        "reference/artifact.md",
        "reference/images.md",
        "reference/wire-protocol.md",
        "reference/conformance.md",
        "reference/*.md",
    ),
    "Explanation": (
        "explanation/eval-mode.md",
        "explanation/numbers.md",
        "explanation/architecture.md",
        "explanation/certificate.md",
        "explanation/same-bits.md",
        "explanation/batching.md",
        "security.md",
        "accuracy.md",
        "performance.md",
        "explanation/*.md",
    ),
    "Decisions": ("decisions/index.md", "decisions/*.md"),  # the last section is a part of the section Project
}
# Documents outside docs that are pages of the site, and the section that shows them.
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "reporting.md"}
SECTION = re.compile(r"<!-- section of (\S+): (.+?) -->\n")
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def main() -> None:
    """Build the site into ``site/``, and exit with the status of the builder."""
    try:
        stage()
    except ValueError as error:
        sys.exit(f"docs/site.py: {error}")
    builder = Path(sys.executable).parent / "zensical"
    done = subprocess.run(
        [builder, "build", "--strict", "--clean", "--config-file", STAGED / "mkdocs.yml"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout, end="")
    if "griffe:" in done.stdout:  # a docstring that does not fit its function, which the builder does not count
        sys.exit(1)
    if not done.returncode:
        shutil.rmtree(BUILT, ignore_errors=True)
        shutil.move(STAGED / "site", BUILT)
        print(f"site      {BUILT.relative_to(ROOT)}/index.html: {len(list(BUILT.rglob('*.html')))} pages")
    sys.exit(done.returncode)


def stage() -> None:
    """Write what the builder reads: the pages, the files that they link to, and the configuration."""
    shutil.rmtree(STAGED, ignore_errors=True)
    pages = {path.relative_to(ROOT / "docs").as_posix(): path for path in (ROOT / "docs").rglob("*.md")}
    pages |= {page: ROOT / document for document, page in OUTSIDE.items()}
    for page, source in pages.items():
        place = STAGED / "docs" / page
        place.parent.mkdir(parents=True, exist_ok=True)
        text = SECTION.sub(_take_section, source.read_text("utf-8"))
        place.write_text(_move_links(text, source, page), "utf-8")
    for folder in ("images", "stylesheets"):
        shutil.copytree(ROOT / "docs" / folder, STAGED / "docs" / folder, dirs_exist_ok=True)
    facts = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    facts |= {"docs_dir": "docs", "site_dir": "site", "nav": list_navigation(sorted(pages))}
    (STAGED / "mkdocs.yml").write_text(yaml.safe_dump(facts, sort_keys=False), "utf-8")


def list_navigation(pages: list[str]) -> list[dict[str, Any]]:
    """List the sections of the site with their pages.

    Args:
        pages: The paths of all pages, relative to ``docs``.

    Returns:
        The value of ``nav`` in ``mkdocs.yml``.

    Raises:
        ValueError: A page is in no section, or a section names a page that does not exist.
    """
    waiting = [page for page in pages if page not in OUTSIDE.values()]
    sections: list[dict[str, Any]] = []
    for section, patterns in NAVIGATION.items():
        chosen: list[str] = []
        for pattern in patterns:
            found = [page for page in waiting if Path(page).match(pattern) and page.count("/") == pattern.count("/")]
            if not found and "*" not in pattern and not pattern.startswith("tutorials/"):
                raise ValueError(f"the section {section} names {pattern}, which is not a page of docs/")
            chosen += found
            waiting = [page for page in waiting if page not in found]
        sections.append({section: chosen})
    if waiting:
        raise ValueError(f"no section of docs/site.py has the pages {', '.join(waiting)}")
    *tabs, decisions = sections
    return [*tabs, {"Project": [*OUTSIDE.values(), decisions]}]


def _take_section(match: re.Match[str]) -> str:
    """A section of a document at the root of the repository, with its links as seen from ``docs``."""
    text = (ROOT / match[1]).read_text("utf-8")
    _, heading, rest = text.partition(f"## {match[2]}\n")
    if not heading:
        raise ValueError(f"{match[1]} has no section {match[2]}")
    section = heading + rest.partition("\n## ")[0] + "\n"
    return LINK.sub(lambda link: link[0] if ":" in link[2] else f"{link[1]}../{link[2]}{link[3]}", section)


def _move_links(text: str, source: Path, page: str) -> str:
    """Let the links of a document lead to pages of the site, and to copies of other files of the repository."""

    def move(match: re.Match[str]) -> str:
        path, mark, anchor = match[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = (source.parent / path).resolve().relative_to(ROOT.resolve()).as_posix()
        if not (ROOT / target).is_file():
            raise ValueError(f"{source.relative_to(ROOT)} links to {match[2]}, which is not a file")
        place = os.path.relpath(_find_place(target), Path(page).parent)
        return f"{match[1]}{place}{mark}{anchor if place.endswith('.md') else ''}{match[3]}"

    return LINK.sub(move, text)


def _find_place(target: str) -> str:
    """The path on the site of a file of the repository, which is copied if it is not part of the documents."""
    if target == "README.md":
        return "index.md"
    if target in OUTSIDE:
        return OUTSIDE[target]
    if target.startswith("docs/") and target.endswith((".md", ".svg", ".png")):
        return target.removeprefix("docs/")
    name = f"files/{target}" + (".txt" if target.endswith(".md") else "")
    (STAGED / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / target, STAGED / "docs" / name)
    return name


if __name__ == "__main__":
    main()
