"""What is known about a data set before anything is decoded."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from evalmode.errors import DataError
from tests.training.test_datasets import cut_short, damage_header, write_classes, write_images
from tests.training.test_datasets_published import make_images, write_npz
from training.datasets import DATASETS, ReadOptions, Survey, survey, survey_data


def test_a_folder_of_images_of_one_size(tmp_path: Path) -> None:
    write_classes(tmp_path, 6, size=(130, 97))
    found = survey_data(str(tmp_path))
    assert found == Survey(97)
    assert found.are_photos


def test_a_folder_of_images_of_several_sizes(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 6, size=(130, 96))
    write_classes(tmp_path / "test", 2, size=(90, 300))
    write_images(tmp_path / "train" / "cat" / "more", 5, (200, 210))
    found = survey_data(str(tmp_path))
    assert found == Survey(96)
    assert found.are_photos


@pytest.mark.parametrize(("side", "photos"), [(95, False), (96, True)])
def test_photos_have_a_median_shorter_side_of_96_pixels(tmp_path: Path, side: int, photos: bool) -> None:
    write_classes(tmp_path, 3, size=(side, 200))
    write_images(tmp_path / "cat", 2, (10, 10))
    assert survey_data(str(tmp_path)).are_photos is photos


def test_headers_are_read_of_evenly_spaced_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MAX_HEADERS", 4)
    write_classes(tmp_path, 5)
    read: list[Path] = []
    original = Path.read_bytes

    def record(path: Path) -> bytes:
        read.append(path.relative_to(tmp_path))
        return original(path)

    with patch.object(Path, "read_bytes", record):
        assert survey_data(str(tmp_path)) == Survey(4)
    assert [str(path) for path in read] == ["cat/000.png", "cat/003.png", "dog/001.png", "dog/004.png"]


def test_nothing_is_decoded_and_unreadable_files_are_skipped(tmp_path: Path) -> None:
    write_classes(tmp_path, 5)
    damage_header(tmp_path / "cat" / "001.png")
    cut_short(tmp_path / "cat" / "002.png")
    with patch("training.datasets.folders.decode_by_header", None):
        assert survey_data(str(tmp_path)) == Survey(4)


def test_a_folder_without_readable_images_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, 3)
    for path in tmp_path.glob("*/*"):
        damage_header(path)
    with pytest.raises(DataError, match="6 of 6 images cannot be read"):
        survey_data(str(tmp_path))


@pytest.mark.parametrize("name", DATASETS)
def test_named_data_sets_are_not_downloaded_and_not_resized(name: str) -> None:
    assert survey_data(name) == Survey(None)


def test_large_arrays_are_not_photos_because_they_cannot_be_resized(tmp_path: Path) -> None:
    arrays = {"x_train": make_images(4, 100, 100), "y_train": np.arange(4) % 2}
    found = survey_data(str(write_npz(tmp_path / "a.npz", arrays)))
    assert found == Survey(None)
    assert not found.are_photos


def test_limits_apply(tmp_path: Path) -> None:
    from evalmode.limits import Limits

    write_classes(tmp_path, 3)
    with pytest.raises(DataError, match="the limit is 19"):
        survey_data(str(tmp_path), ReadOptions(limits=Limits(max_image_pixels=19)))
