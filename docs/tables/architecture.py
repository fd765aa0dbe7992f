"""The packages of the repository, their imports, its folders and its decisions."""

from __future__ import annotations

import tomllib

from docs.tables import ROOT
from docs.tables.markdown import draw

PACKAGES = tomllib.loads((ROOT / "docs" / "packages.toml").read_text())
# The other folders of the repository.
FOLDERS = {
    "protos": "the wire contracts: `evalmode.v1` and the Open Inference Protocol v2",
    "tests": "mirror the packages; `contract/` (training meets serving), `e2e/` (the commands), `conformance/`",
    "benchmarks": "long measurements and their results",
    "examples": "small programs to copy; each is run by a test",
    "docker": "container images, compose file, and their test",
    "deploy": "Helm chart, Kustomize, KServe; rules for Prometheus, a dashboard for Grafana; configurations of proxies",
    "docs": "tutorials, how-to pages, reference, explanation, decisions; `tables/` generates the tables",
}


def draw_tree() -> str:
    """Draw the packages and folders of the repository, each with its purpose."""
    lines = []
    for name, package in PACKAGES.items():
        *outer, last = name.split(".")
        suffix = "/" if (ROOT / name.replace(".", "/")).is_dir() else ".py"
        lines.append(f"{'  ' * len(outer) + last + suffix:<18} {package['what']}")
    lines += [f"{name + '/':<18} {what}" for name, what in FOLDERS.items()]
    return "```\n" + "\n".join(lines).replace("`", "") + "\n```\n"


def find_arrows() -> dict[str, set[str]]:
    """Find which package imports which, without what follows from longer paths.

    Packages that may import all others are left out.
    """
    graph = {name: set(package["imports"]) for name, package in PACKAGES.items() if package["imports"] != ["*"]}
    return {
        name: imports - {far for near in imports for far in find_reachable(graph, near)}
        for name, imports in graph.items()
    }


def find_reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Find the packages that a package imports, directly or through others.

    Args:
        graph: The imports of each package.
        start: The package to start from.

    Returns:
        The packages, ``start`` not among them.
    """
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def show_decisions() -> str:
    """Show the decisions with their titles."""
    titles = {path: path.read_text().splitlines()[0] for path in sorted((ROOT / "docs" / "decisions").glob("0*.md"))}
    rows = [(int(path.name[:4]), f"[{title.partition('. ')[2]}]({path.name})") for path, title in titles.items()]
    return draw(("", "decision"), rows)
