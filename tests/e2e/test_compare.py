"""``compare`` refuses what its limits forbid, and takes files and folders of a model repository."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from evalmode.artifact.publishing import publish
from tests.conftest import colour_artifact, encode, plain

Evalmode = Callable[..., subprocess.CompletedProcess[str]]
LABELS = ("red", "green", "blue")
PICTURES = [*(("blue", "blue", number) for number in range(18)), ("red", "red", 18), ("green", "blue", 19)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, of which the second takes red for green, and 20 images: the accuracy falls from 0.95 to 0.90."""
    folder = tmp_path_factory.mktemp("gates")
    publish(folder / "models", "colours", colour_artifact(LABELS))
    publish(folder / "models", "colours", colour_artifact(("green", "red", "blue")))
    for label, colour, number in PICTURES:
        path = folder / "dataset/val" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(plain(colour)))
    return folder


@pytest.mark.parametrize(
    ("limits", "reasons"),
    [
        ((), []),
        (("--max-changed", "5%"), []),  # gains count as losses do: the fall of the accuracy is not limited
        (("--max-accuracy-drop", "5%"), []),  # 19 of 20 and 18 of 20 differ by exactly 5 percentage points
        (("--max-accuracy-drop", "0.05"), []),
        (
            ("--max-accuracy-drop", "4%"),
            ["the accuracy falls from 0.9500 to 0.9000, by 5.00 percentage points, --max-accuracy-drop 4%"],
        ),
        (
            ("--max-accuracy-drop", "0", "--max-changed", "2%"),
            [
                "the accuracy falls from 0.9500 to 0.9000, by 5.00 percentage points, --max-accuracy-drop 0%",
                "5.00% of the labels change, --max-changed 2%",
            ],
        ),
    ],
)
def test_each_limit_that_is_exceeded_is_a_line_and_exit_code_1(
    limits: tuple[str, ...], reasons: list[str], place: Path, evalmode: Evalmode
) -> None:
    versions = (place / "models/colours" / number / "model.onnx" for number in "12")
    done = evalmode("compare", *versions, "--images", place / "dataset/val", *limits, "--json", "--quiet")
    assert done.returncode == bool(reasons)
    assert done.stderr.splitlines() == [f"evalmode: {reason}" for reason in reasons]
    facts = json.loads(done.stdout)
    assert (facts["passed"], facts["accuracy_drop"]) == (not reasons, 0.05)


def test_a_model_that_is_better_passes_without_any_drop(place: Path, evalmode: Evalmode) -> None:
    versions = (place / "models/colours" / number / "model.onnx" for number in "21")
    done = evalmode("compare", *versions, "--images", place / "dataset/val", "--max-accuracy-drop", "0", "--json")
    assert (done.returncode, json.loads(done.stdout)["accuracy_drop"]) == (0, -0.05)


def test_folders_of_a_repository_name_a_version_or_the_newest_one(place: Path, evalmode: Evalmode) -> None:
    page = place / "page.html"
    done = evalmode(
        "compare",
        place / "models/colours/1",
        place / "models/colours",
        "--images",
        place / "dataset/val",
        "--page",
        page,
    )
    assert "accuracy  0.9500 -> 0.9000" in done.stdout
    assert "colours/2 compared with colours/1" in page.read_text()


def test_a_folder_of_splits_is_refused_with_the_split_to_give(place: Path, evalmode: Evalmode) -> None:
    version = place / "models/colours/1"
    (place / "dataset/train/red").mkdir(parents=True, exist_ok=True)
    done = evalmode("compare", version, version, "--images", place / "dataset")
    assert done.returncode == 2
    assert "holds folders that are not named like a label: train, val; labels: red, green, blue; " in done.stderr
    assert f"give one split, such as {place / 'dataset/val'}\n" in done.stderr


def test_a_table_gives_the_same_comparison_as_folders(place: Path, evalmode: Evalmode) -> None:
    rows = [f"{number}.png,{label}" for label, _, number in PICTURES]
    (place / "labels.csv").write_text("\n".join(("file,label", *rows)))
    versions = [place / "models/colours" / number for number in "12"]
    folders, table = (
        evalmode("compare", *versions, "--images", place / images, "--json", "--quiet")
        for images in ("dataset/val", "labels.csv")
    )
    assert (table.returncode, table.stderr) == (0, "")
    assert {**json.loads(table.stdout), "latency_ratio": 0} == {**json.loads(folders.stdout), "latency_ratio": 0}
