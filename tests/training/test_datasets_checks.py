"""Checks of every data set: copies across splits, classes that are empty without them, unbalanced classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from evalmode.errors import DataError
from training.datasets import Dataset, Split, load_dataset
from training.datasets.checks import check_dataset

SPLITS = ("train", "val", "test")


def make_split(images: Sequence[int], targets: Sequence[int]) -> Split:
    """Grey images of 3x2; equal numbers give equal images."""
    made = [np.random.default_rng(number).integers(0, 256, (3, 2, 1), np.uint8) for number in images]
    return Split(np.array(made), np.array(targets, np.int64))


def make_dataset(**splits: tuple[Sequence[int], Sequence[int]]) -> Dataset:
    """Two classes with one image each in every split, plus the given images and targets."""
    whole = {}
    for index, name in enumerate(SPLITS):
        images, targets = splits.get(name, ((), ()))
        whole[name] = make_split((900 + 2 * index, 901 + 2 * index, *images), (0, 1, *targets))
    return Dataset("made", ("cat", "dog"), whole["train"], whole["val"], whole["test"])


def test_a_data_set_without_copies_is_unchanged() -> None:
    dataset = make_dataset(train=((1, 2), (0, 1)), val=((3, 4), (0, 1)), test=((5, 6), (0, 1)))
    digest = dataset.digest()
    checked = check_dataset(dataset)
    assert checked.digest() == digest
    assert checked.warnings == ()


@pytest.mark.parametrize(("removed_from", "kept_in"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_copies_stay_in_test_before_val_and_in_val_before_train(removed_from: str, kept_in: str) -> None:
    dataset = make_dataset(**{removed_from: ((1, 2, 3, 4), (0, 1, 1, 1)), kept_in: ((7, 4, 2), (0, 1, 1))})
    checked = check_dataset(dataset)
    start = {name: 900 + 2 * index for index, name in enumerate(SPLITS)}[removed_from]
    wanted = make_split((start, start + 1, 1, 3), (0, 1, 0, 1))
    assert np.array_equal(getattr(checked, removed_from).images, wanted.images)
    assert getattr(checked, removed_from).targets.tolist() == wanted.targets.tolist()
    assert len(getattr(checked, kept_in)) == 5
    assert checked.warnings == (
        f"2 of 6 {removed_from} images are copies of {kept_in} images and left out, 0 of them with another label",
    )


def test_copies_with_another_label_are_counted() -> None:
    checked = check_dataset(make_dataset(train=((1, 2, 3), (0, 1, 0)), test=((1, 2, 3), (1, 1, 1))))
    assert len(checked.train) == 2
    assert checked.warnings == (
        "2 images have several labels: train image 2 (cat) and test image 2 (dog); "
        "train image 4 (cat) and test image 4 (dog)",
        "3 of 5 train images are copies of test images and left out, 2 of them with another label",
    )


def test_three_images_of_several_labels_are_named_and_the_rest_counted() -> None:
    checked = check_dataset(make_dataset(train=((1, 2, 3, 4, 5, 1), (0,) * 6), val=((1, 2, 3, 4, 5), (1,) * 5)))
    named, *_ = checked.warnings
    assert named.startswith("5 images have several labels: train image 2 (cat) and val image 2 (dog); ")
    assert named.count(" and val image ") == 3
    assert named.endswith("; and 2 more")


def test_a_copy_in_all_three_splits_stays_in_test_alone() -> None:
    checked = check_dataset(make_dataset(train=((1,), (0,)), val=((1,), (0,)), test=((1,), (0,))))
    assert [len(getattr(checked, name)) for name in SPLITS] == [2, 2, 3]
    assert len(checked.warnings) == 2


def test_images_that_differ_in_one_value_are_not_copies() -> None:
    dataset = make_dataset(train=((1,), (0,)), test=((1,), (0,)))
    dataset.train.images[2, 2, 1, 0] ^= 1
    assert check_dataset(dataset).warnings == ()


def test_copies_within_a_split_stay() -> None:
    checked = check_dataset(make_dataset(train=((1, 1, 3), (0, 0, 1)), test=((2, 2), (1, 1))))
    assert (len(checked.train), len(checked.test)) == (5, 4)
    assert checked.warnings == ()


def test_rows_that_are_moved_in_chunks_keep_order_and_labels() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5000, 3, 2, 1), np.uint8)
    targets = rng.integers(0, 2, 5000)
    copied = rng.random(5000) < 0.3
    test = Split(images[copied], targets[copied])
    wanted, expected = images[~copied], targets[~copied]
    checked = check_dataset(Dataset("made", ("cat", "dog"), Split(images, targets), make_dataset().val, test))
    assert np.array_equal(checked.train.images, wanted)
    assert np.array_equal(checked.train.targets, expected)


def test_earlier_warnings_come_first() -> None:
    dataset = make_dataset(train=((1,), (0,)), test=((1,), (0,)))
    warned = Dataset(dataset.source, dataset.labels, dataset.train, dataset.val, dataset.test, ("first",))
    assert [warning.split()[0] for warning in check_dataset(warned).warnings] == ["first", "1"]


@pytest.mark.parametrize(("split", "kept_in"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_a_class_that_the_copies_leave_empty_is_refused_with_the_reason(split: str, kept_in: str) -> None:
    start = {name: 900 + 2 * index for index, name in enumerate(SPLITS)}[split]
    dataset = make_dataset(**{kept_in: ((start + 1,), (1,))})
    with pytest.raises(
        DataError,
        match=rf"label 'dog' has no {split} images: .* \(1 of 2 {split} images are copies of {kept_in} images",
    ):
        check_dataset(dataset)


def test_a_split_that_the_copies_leave_empty_is_refused() -> None:
    with pytest.raises(DataError, match="label 'cat' has no train images"):
        check_dataset(make_dataset(val=((900, 901), (0, 1))))


def test_unbalanced_classes_are_reported_with_names_and_counts() -> None:
    (warning,) = check_dataset(make_dataset(train=((1, 2), (1, 1)))).warnings
    assert "'dog' has 3 training images and 'cat' has 1 training images" in warning
    assert "--balance" in warning


def test_twice_as_many_images_are_not_unbalanced() -> None:
    assert check_dataset(make_dataset(train=((1,), (1,)))).warnings == ()


def test_only_training_images_make_classes_unbalanced() -> None:
    assert check_dataset(make_dataset(val=((1, 2), (1, 1)), test=((3, 4), (1, 1)))).warnings == ()


def test_a_folders_copies_are_found_by_their_pixels(tmp_path: Path) -> None:
    from PIL import Image

    for name in SPLITS:
        for label in ("cat", "dog"):
            (tmp_path / name / label).mkdir(parents=True)
            for index in range(2):
                rng = np.random.default_rng([SPLITS.index(name), len(label + label[0]), ord(label[0]), index])
                Image.fromarray(rng.integers(0, 256, (5, 4), np.uint8)).save(tmp_path / name / label / f"{index}.png")
    Image.open(tmp_path / "test" / "cat" / "0.png").save(tmp_path / "train" / "dog" / "copy.bmp")  # other bytes
    dataset = load_dataset(str(tmp_path))
    assert [len(getattr(dataset, name)) for name in SPLITS] == [4, 4, 4]
    assert dataset.warnings == (
        f"1 image has several labels: {tmp_path / 'train/dog/copy.bmp'} and {tmp_path / 'test/cat/0.png'}",
        "1 of 5 train images are copies of test images and left out, 1 of them with another label",
    )


def test_one_image_in_two_class_folders_is_named_with_both_files(tmp_path: Path) -> None:
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for index in range(8):
            rng = np.random.default_rng([ord(label[0]), index])
            Image.fromarray(rng.integers(0, 256, (5, 4), np.uint8)).save(tmp_path / label / f"{index}.png")
    (tmp_path / "dog" / "same.png").write_bytes((tmp_path / "cat" / "3.png").read_bytes())
    named = load_dataset(str(tmp_path)).warnings[0]
    assert named.startswith("1 image has several labels: ")
    assert str(tmp_path / "dog" / "same.png") in named
    assert str(tmp_path / "cat" / "3.png") in named


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("caf\udce9", "tea"), "is not UTF-8: rename its folder"),
        (("caf\u00e9", "cafe\u0301"), r"'caf\\xe9' and 'cafe\\u0301' look alike"),
    ],
)
def test_labels_that_are_not_utf8_or_look_alike_are_refused(labels: tuple[str, str], message: str) -> None:
    images, targets = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1], np.int64)
    split = Split(images, targets)
    with pytest.raises(DataError, match=message):
        check_dataset(Dataset("images", labels, split, split, split))
