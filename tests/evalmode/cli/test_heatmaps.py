"""Where ``evalmode predict --heatmap`` writes its pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from evalmode.cli.heatmaps import place_heatmaps
from evalmode.cli.predict import predict
from tests.conftest import encode, map_artifact, plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an artifact and three images."""
    (tmp_path / "model.onnx").write_bytes(map_artifact())
    for name in ("red/1.png", "red/2.png", "blue/1.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(plain(path.parent.name)))
    return tmp_path


def run(folder: Path, *arguments: object) -> Result:
    return CliRunner().invoke(predict, ["--file", str(folder / "model.onnx"), *map(str, arguments)])


def test_the_heatmap_of_one_image_is_a_file(folder: Path) -> None:
    done = run(folder, folder / "images/red/1.png", "--heatmap", folder / "new/map")
    assert done.exit_code == 0
    with Image.open(folder / "new/map") as picture:
        assert (picture.format, picture.size) == ("PNG", (4, 4))


def test_heatmaps_of_a_folder_have_the_paths_of_its_images(folder: Path) -> None:
    done = run(folder, folder / "images", "--heatmap", folder / "maps")
    assert done.exit_code == 0
    found = sorted(path.relative_to(folder / "maps").as_posix() for path in (folder / "maps").rglob("*.png"))
    assert found == ["blue/1.png.png", "red/1.png.png", "red/2.png.png"]


def test_images_of_the_same_name_have_different_heatmaps(tmp_path: Path) -> None:
    images = [(tmp_path / name / "1.png", tmp_path / name) for name in ("a", "b", "c")]
    placed = place_heatmaps(Path("maps"), images)
    assert list(map(str, placed.values())) == ["maps/1.png.png", "maps/1.png-2.png", "maps/1.png-3.png"]


def test_an_existing_folder_takes_the_heatmap_of_one_image(folder: Path) -> None:
    assert run(folder, folder / "images/red/1.png", "--heatmap", folder / "images").exit_code == 0
    assert (folder / "images/1.png.png").exists()


def test_a_file_that_cannot_be_written_is_named(folder: Path) -> None:
    done = run(folder, folder / "images/red/1.png", "--heatmap", folder / "model.onnx/map.png")
    assert str(done.exception) == f"--heatmap {folder / 'model.onnx/map.png'}: File exists"


def test_a_server_is_refused(folder: Path) -> None:
    done = CliRunner().invoke(predict, [str(folder / "images"), "--heatmap", str(folder / "maps")])
    assert str(done.exception).startswith("--heatmap needs --file")
