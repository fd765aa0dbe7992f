"""Behaviour common to the commands of training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "broken",
    ["raise OSError('libtorch.so: cannot open shared object file')", "raise ImportError('undefined symbol')"],
)
@pytest.mark.parametrize(
    "command",
    [("train", "digits", "--out", "run"), ("export", ".", "--repository", "m", "--name", "n"), ("report", ".")],
)
def test_a_torch_that_cannot_be_imported_is_reported_in_one_line(
    tmp_path: Path, broken: str, command: tuple[str, ...]
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(broken)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "evalmode", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("evalmode: torch is installed and cannot be imported: ")
    assert "pip install --force-reinstall torch" in line
