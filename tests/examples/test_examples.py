"""The examples do what they say. Those of tritonclient and JavaScript are run in tests/e2e."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path

import pytest

from evalmode.runtime.loading import load_model
from tests.examples.conftest import EXAMPLES, Scenes, make_photos, run

RUN_WITH_TIMM = """
import runpy, sys
from training.networks import timm
timm._import_timm("timm")  # also beside a torchvision that does not fit torch: docs/installing.md
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LABELS = ["flower", "sky", "tower", "trees"]


def test_every_example_is_in_the_readme() -> None:
    text = (EXAMPLES / "README.md").read_text()
    linked = set(re.findall(r"\]\((\w+)/", text))
    assert linked == {path.name for path in EXAMPLES.iterdir() if path.is_dir()}


@pytest.mark.slow
def test_an_own_network_learns_and_is_exported(scenes: Scenes) -> None:
    accuracy = re.search(r"^test +([\d.]+)", scenes.trained.stdout, re.MULTILINE)
    assert accuracy
    assert float(accuracy[1]) > 0.7
    model = load_model(scenes.models / "scenes/1/model.onnx").as_classifier()
    assert list(model.manifest.labels) == LABELS
    assert model.manifest.properties["network"] == "mine:build"


@pytest.mark.slow
def test_a_folder_of_photos_becomes_a_table(scenes: Scenes, tmp_path: Path) -> None:
    shutil.copytree(scenes.test, tmp_path / "photos")
    (tmp_path / "photos/sky/broken.jpg").write_text("not a photo")
    done = run(sys.executable, EXAMPLES / "folder/classify.py", scenes.models / "scenes", "photos", cwd=tmp_path)
    rows = {row["path"]: row for row in csv.DictReader(done.stdout.splitlines())}
    assert done.returncode == 1, done.stderr
    assert len(rows) == 41
    assert rows.pop("photos/sky/broken.jpg")["error"].startswith("not an image")
    model = load_model(scenes.models / "scenes/1/model.onnx")
    for path, row in rows.items():
        first, second = model.predict(tmp_path / path, top_k=2).scores
        assert (row["label"], row["probability"]) == (first.label, f"{first.probability:.4f}")
        assert (row["second_label"], row["error"]) == (second.label, "")


@pytest.mark.slow
def test_a_server_runs_inside_a_test_suite(scenes: Scenes) -> None:
    shutil.copytree(EXAMPLES / "test_suite", scenes.folder / "suite")  # out of reach of the settings in pyproject.toml
    command = (sys.executable, "-m", "pytest", "-q", "suite")
    done = run(*command, cwd=scenes.folder, MODELS=scenes.models)
    assert "3 passed" in done.stdout, done.stdout
    shuffled = scenes.folder / "shuffled"
    shuffled.mkdir()
    for label, other in zip(LABELS, LABELS[1:] + LABELS[:1], strict=True):
        shutil.copytree(scenes.test / label, shuffled / other)
    done = run(*command, cwd=scenes.folder, MODELS=scenes.models, PHOTOS=shuffled)
    assert "1 failed, 2 passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_network_of_timm_is_certified(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    make_photos(tmp_path / "photos/train", 30, 1)
    make_photos(tmp_path / "photos/test", 10, 2)
    done = run(sys.executable, "-c", RUN_WITH_TIMM, EXAMPLES / "timm/certify_timm.py", "photos", "models", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy, difference, path = done.stdout.splitlines()
    assert float(accuracy.split()[1]) > 0.7
    assert re.fullmatch(r"timm and ONNX Runtime differ by \d+e-0[5-9] at most", difference)
    assert list(load_model(tmp_path / path).as_classifier().manifest.labels) == LABELS
