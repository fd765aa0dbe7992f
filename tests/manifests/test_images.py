"""The Dockerfiles pass hadolint."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

DOCKERFILES = sorted((Path(__file__).parents[2] / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    command = [Path(sysconfig.get_path("scripts")) / "hadolint", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install numpy\n")
    command = [Path(sysconfig.get_path("scripts")) / "hadolint", tmp_path / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3013" in done.stdout
