"""The workflow and the recipe of docs/how-to/gate.md publish a network only if it passes the gate."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalmode.artifact.repository import list_versions
from tests.examples.conftest import EXAMPLES, ROOT, make_photos, run

WORKFLOW = EXAMPLES / "github_actions/model.yml"
CHECKER = "check-jsonschema==0.39.0"  # it contains the schemas that GitHub publishes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Runner:
    """Runs the commands of the workflow in a folder, as a runner does; its environment has evalmode.

    Attributes:
        folder: The checkout.
        models: The model repository.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.models = folder / "models"
        self.summary = folder / "summary.md"
        self._workflow = read_workflow(WORKFLOW)
        self.folder.mkdir()

    def run(self, *left_out: str) -> subprocess.CompletedProcess[str]:
        """Run the steps in their order until one fails, without actions, the install, and those that are left out."""
        [job] = self._workflow["jobs"].values()
        steps = [one for one in job["steps"] if "run" in one and one["name"] not in ("Install", *left_out)]
        for step in steps:
            script = self.folder.parent / "step.sh"
            script.write_text(step["run"])
            command = ["bash", "-e", str(script)]  # the default shell of a runner
            variables = {
                **os.environ,
                **self._workflow["env"],
                "MODELS": str(self.models),
                "GITHUB_STEP_SUMMARY": str(self.summary),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            }
            done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=600)
            if done.returncode:
                return done
        return done


def read_workflow(path: Path) -> dict[str, Any]:
    workflow: dict[str, Any] = yaml.safe_load(path.read_text())
    return workflow


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command check-jsonschema, in an environment of its own."""
    folder = tmp_path_factory.mktemp("checker")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", CHECKER], check=True)
    return folder / "bin/check-jsonschema"


def check(checker: Path, workflow: Path) -> int:
    return subprocess.run([checker, "--builtin-schema", "vendor.github-workflows", workflow]).returncode


def test_the_workflow_is_valid(checker: Path, tmp_path: Path) -> None:
    assert check(checker, WORKFLOW) == 0
    misspelt = tmp_path / "misspelt.yml"
    misspelt.write_text(WORKFLOW.read_text().replace("timeout-minutes", "timeout-minuets"))
    assert check(checker, misspelt) != 0


def test_a_network_is_published_only_if_its_accuracy_does_not_fall(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    (runner.folder / "photos").mkdir()
    make_photos(runner.folder / "photos/train", 30, 1)
    make_photos(runner.folder / "photos/test", 10, 2)

    first = runner.run()
    assert first.returncode == 0, first.stderr
    assert list_versions(runner.models, "scenes") == [1]
    assert "nothing to compare with" in runner.summary.read_text()
    digests = [json.loads((runner.folder / name).read_text())["digest"] for name in ("export.json", "published.json")]
    assert digests[0] == digests[1]  # the candidate that was compared is published

    again = runner.run("Train", "Export a candidate, with every check")
    assert again.returncode == 0, again.stderr
    assert list_versions(runner.models, "scenes") == [1, 2]
    assert re.search(r"labels    0 of 40 change .*\naccuracy  ([\d.]+) -> \1:", runner.summary.read_text())

    labels = runner.folder / "photos/train"
    (labels / "flower").rename(labels / "other")
    (labels / "sky").rename(labels / "flower")
    (labels / "other").rename(labels / "sky")
    for name in ("run", "candidate"):
        shutil.rmtree(runner.folder / name)  # another run begins with a clean checkout
    refused = runner.run()
    assert refused.returncode == 1, refused.stderr
    assert "--max-accuracy-drop 1%" in refused.stderr
    assert list_versions(runner.models, "scenes") == [1, 2]
    assert (runner.folder / "changes.html").stat().st_size


def test_the_recipe_of_the_page_publishes_the_first_version_and_refuses_a_worse_one(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/how-to/gate.md").read_text(), re.MULTILINE | re.DOTALL)
    photos = tmp_path / "photos"
    photos.mkdir()
    make_photos(photos / "train", 30, 1)
    make_photos(photos / "test", 10, 2)
    tools = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "EVALMODE_TRAIN_FINE_TUNE": "none"}

    first = run("bash", "-c", recipe, cwd=tmp_path, **tools)
    assert first.returncode == 0, first.stderr
    assert list_versions(tmp_path / "models", "pets") == [1]
    assert not (tmp_path / "compare.json").exists()

    for name in ("run", "candidate"):
        shutil.rmtree(tmp_path / name)  # another build begins with a clean checkout
    again = run("bash", "-c", recipe, cwd=tmp_path, **tools)
    assert again.returncode == 0, again.stderr
    assert list_versions(tmp_path / "models", "pets") == [1, 2]
    files = [(tmp_path / name / "model.onnx").read_bytes() for name in ("candidate/pets/1", "models/pets/2")]
    assert files[0] == files[1]  # the second export writes the file that was compared

    for old, new in [("flower", "other"), ("sky", "flower"), ("other", "sky")]:
        (photos / "train" / old).rename(photos / "train" / new)
    for name in ("run", "candidate"):
        shutil.rmtree(tmp_path / name)
    refused = run("bash", "-c", recipe, cwd=tmp_path, **tools)
    assert refused.returncode == 1, refused.stderr
    assert "--max-accuracy-drop 1%" in refused.stderr
    assert list_versions(tmp_path / "models", "pets") == [1, 2]
    assert json.loads((tmp_path / "compare.json").read_text())["passed"] is False
