"""Reads the results of benchmarks for the documents, and names the files and commits behind a table.

The newest file of a benchmark counts: ``2026-11-26-serve.json`` before ``2026-11-23-serve.json``.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.record import describe_result, name_commit
from docs.tables import ROOT

RESULTS = ROOT / "benchmarks" / "results"
UNSTAMPED: dict[str, str] = tomllib.loads((RESULTS / "unstamped.toml").read_text())["added_by"]


def find_result(name: str) -> Path:
    """Find the newest result of a benchmark.

    Args:
        name: The name of its files after the date, such as ``serve``.

    Raises:
        FileNotFoundError: There is none.
    """
    found = sorted(RESULTS.glob(f"????-??-??-{name}.json"))
    if not found:
        raise FileNotFoundError(f"no result DATE-{name}.json in {RESULTS}")
    return found[-1]


def read_result(path: Path) -> dict[str, Any]:
    """Read a result.

    Args:
        path: The file.
    """
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def cite(document: str, *names: str) -> str:
    """Name the files that a table is made from, with their commits, for the line below it.

    Args:
        document: Path of the document, relative to the repository.
        names: The benchmarks, as for ``find_result``.
    """
    return f"\nSource: {cite_inline(document, [find_result(name) for name in names])}.\n"


def cite_inline(document: str, paths: Iterable[Path]) -> str:
    """Link results, each with its commit.

    Args:
        document: Path of the document, relative to the repository.
        paths: The files.
    """
    folder = (ROOT / document).parent
    links = (f"[{path.name}]({os.path.relpath(path, folder)}), {describe_commit(path)}" for path in paths)
    return "; ".join(links)


def describe_commit(path: Path) -> str:
    """Say which commit a result was measured with, and on which machine.

    Args:
        path: The file.
    """
    result = read_result(path)
    if "stamp" in result:
        return f"{name_commit(result['stamp'])}, {describe_result(result)}"
    return f"commit not recorded (added by {UNSTAMPED[path.name]})"
