"""What is known about a data set before anything is decoded."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from evalmode.errors import DataError
from tests.training.test_datasets import cut_short, damage_header, write_classes, write_images
from tests.training.test_datasets_published import make_arrays, make_images, write_idx, write_npz
from training.datasets import DATASETS, ReadOptions, Survey, load_dataset, survey, survey_data


def test_a_folder_of_images_of_one_size(tmp_path: Path) -> None:
    write_classes(tmp_path, 6, size=(130, 97))
    found = survey_data(str(tmp_path))
    assert found == Survey(12, (97, 130), 97, are_files=True)
    assert found.are_photos


def test_a_folder_of_images_of_several_sizes(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 6, size=(130, 96))
    write_classes(tmp_path / "test", 2, size=(90, 300))
    write_images(tmp_path / "train" / "cat" / "more", 5, (200, 210))
    found = survey_data(str(tmp_path))
    assert found == Survey(21, None, 96, are_files=True)
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
        assert survey_data(str(tmp_path)).images == 10
    assert [str(path) for path in read] == ["cat/000.png", "cat/003.png", "dog/001.png", "dog/004.png"]


def test_nothing_is_decoded_and_unreadable_files_are_skipped(tmp_path: Path) -> None:
    write_classes(tmp_path, 5)
    damage_header(tmp_path / "cat" / "001.png")
    cut_short(tmp_path / "cat" / "002.png")
    with patch("training.datasets.folders.decode_by_header", None):
        assert survey_data(str(tmp_path)) == Survey(10, (4, 5), 4, are_files=True)


def test_a_folder_without_readable_images_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, 3)
    for path in tmp_path.glob("*/*"):
        damage_header(path)
    with pytest.raises(DataError, match="6 of 6 images cannot be read"):
        survey_data(str(tmp_path))


@pytest.mark.parametrize("source", ["nowhere", "cat", "cat/000.png"])
def test_data_that_cannot_be_loaded_are_refused_with_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    write_classes(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as loading:
        load_dataset(source)
    with pytest.raises(DataError) as surveying:
        survey_data(source)
    assert str(surveying.value) == str(loading.value)


@pytest.mark.parametrize("name", DATASETS)
def test_named_data_sets_are_not_downloaded(name: str) -> None:
    found = survey_data(name)
    assert (found.images, found.size) == (DATASETS[name].images, DATASETS[name].size)
    assert not found.are_photos


def test_the_record_of_the_digits_is_right() -> None:
    digits = load_dataset("digits")
    assert DATASETS["digits"].images == sum(map(len, (digits.train, digits.val, digits.test)))
    assert DATASETS["digits"].size == digits.contract.shape[:2]


@pytest.mark.parametrize("gzipped", [False, True])
def test_idx_files(tmp_path: Path, gzipped: bool) -> None:
    write_idx(tmp_path, gzipped)
    assert survey_data(str(tmp_path)) == Survey(72, (5, 4), 4, are_files=False)


def test_an_archive_of_cifar_10(tmp_path: Path) -> None:
    (tmp_path / "any.tar.gz").write_bytes(b"")
    assert survey_data(str(tmp_path / "any.tar.gz")) == Survey(60_000, (32, 32), 32, are_files=False)


def test_an_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", make_arrays())
    with patch("training.datasets.storage.Storage.allocate", None):
        assert survey_data(str(path)) == Survey(48, (6, 5), 5, are_files=False)


def test_large_arrays_are_not_photos_because_they_cannot_be_resized(tmp_path: Path) -> None:
    arrays = {"x_train": make_images(4, 100, 100), "y_train": np.arange(4) % 2}
    found = survey_data(str(write_npz(tmp_path / "a.npz", arrays)))
    assert found == Survey(4, (100, 100), 100, are_files=False)
    assert not found.are_photos


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_train": None}, "lacks x_train"),
        ({"x_train": make_images(40, 6, 5, 3) / 255}, r"x_train is float64 \(40, 6, 5, 3\): uint8 "),
    ],
)
def test_an_npz_without_images_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        survey_data(str(write_npz(tmp_path / "a.npz", make_arrays(**change))))


def test_limits_apply(tmp_path: Path) -> None:
    from evalmode.limits import Limits

    write_classes(tmp_path, 3)
    with pytest.raises(DataError, match="the limit is 19"):
        survey_data(str(tmp_path), ReadOptions(limits=Limits(max_image_pixels=19)))
