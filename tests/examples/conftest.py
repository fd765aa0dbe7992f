"""Shared by the tests of the examples: photos, a model of them, and a way to run a command as a user does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

Done = subprocess.CompletedProcess[str]
Evalmode = Callable[..., Done]


def run(*command: object, cwd: Path, **environment: object) -> Done:
    """Run a program with the packages of the checkout."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **{name: str(value) for name, value in environment.items()}}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, timeout=240)


def make_photos(folder: Path, count: int, seed: int) -> None:
    """Write that many photos of each of four labels."""
    maker = ROOT / "docs/tutorials/make_photos.py"
    done = run(sys.executable, maker, folder, count, seed, cwd=folder.parent)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Scenes:
    """What the example of an own network left.

    Attributes:
        folder: Holds ``photos`` with ``train`` and ``test``, ``run``, and ``models`` with scenes/1.
        trained: The command that trained.
    """

    folder: Path
    trained: Done

    @property
    def models(self) -> Path:
        """The model repository."""
        return self.folder / "models"

    @property
    def test(self) -> Path:
        """The test photos."""
        return self.folder / "photos/test"


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory, evalmode: Evalmode) -> Scenes:
    """The network of examples/own_network, trained on photos and exported."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "photos").mkdir()
    make_photos(folder / "photos/train", 30, 1)
    make_photos(folder / "photos/test", 10, 2)
    shutil.copy(EXAMPLES / "own_network/mine.py", folder)
    trained = evalmode("train", "photos", "--out", "run", "--network", "mine:build", "--no-report", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    exported = evalmode("export", "run", "--repository", "models", "--name", "scenes", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    return Scenes(folder, trained)
