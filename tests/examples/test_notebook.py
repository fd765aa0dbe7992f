"""The notebook is executed, and the repository has the outputs that it has then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.examples.conftest import EXAMPLES, run
from tests.examples.shown import list_differences

NOTEBOOK = EXAMPLES / "notebook/train.ipynb"
EXECUTE = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=300).execute()
for cell in notebook.cells:
    cell.metadata = {}  # times
nbformat.write(notebook, sys.argv[2])
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the packages of this one, and what executes notebooks."""
    return make_environment(tmp_path_factory.mktemp("notebook"), "nbclient==0.11.0", "ipykernel==7.4.0")


def make_environment(folder: Path, *packages: str) -> Path:
    """Make an environment with the packages of this one and others; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    [site] = (folder / "lib").glob("*/site-packages")
    (site / "packages_of_the_tests.pth").write_text(
        "".join(f"{path}\n" for path in sys.path if "site-packages" in path)
    )
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *packages], check=True)
    return folder / "bin/python"


def execute(python: Path, out: Path) -> dict[str, Any]:
    done = run(python, "-c", EXECUTE, NOTEBOOK, out, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    notebook: dict[str, Any] = json.loads(out.read_text())
    return notebook


def read_texts(notebook: dict[str, Any]) -> list[str]:
    """What each cell printed."""
    return [
        "".join(line for output in one["outputs"] for line in output.get("text", "")) for one in list_cells(notebook)
    ]


def list_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_prints_what_it_shows(python: Path, tmp_path: Path) -> None:
    """If this fails because the notebook changed, copy the executed one over it."""
    committed, executed = json.loads(NOTEBOOK.read_text()), execute(python, tmp_path / "executed.ipynb")
    assert [cell["source"] for cell in committed["cells"]] == [cell["source"] for cell in executed["cells"]]
    shown = read_texts(committed)
    assert sum(map(bool, shown)) >= 3
    for one, other in zip(shown, read_texts(executed), strict=True):
        assert list_differences(one, other) == []
    pictures = [
        output for cell in list_cells(executed) for output in cell["outputs"] if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1
