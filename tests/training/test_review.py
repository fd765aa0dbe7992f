"""The review of the data names splits and rows, and is read from the run as it was written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.datasets import Dataset, Split
from training.errors import RunError
from training.features import Features
from training.review import FEW_TEST_IMAGES, NearDuplicate, Review, review_data

from .test_cross_validation import draw_features, fit_logistic

COUNTS = {"train": 120, "val": 30, "test": 50}


@pytest.fixture
def dataset() -> Dataset:
    """Labels 0, 1, 2 in turn, but for one wrong label in each split: that of image 7."""
    splits = {}
    for split, count in COUNTS.items():
        targets = np.arange(count) % 3
        targets[7] = 0  # 7 % 3 is 1
        splits[split] = Split(np.zeros((count, 2, 2, 3), np.uint8), targets)
    return Dataset("data", ("a", "b", "c"), splits["train"], splits["val"], splits["test"])


TRUE = np.concatenate([np.arange(count) % 3 for count in COUNTS.values()])
_TRAIN, _VAL, _TEST = np.split(draw_features(TRUE, 4), [120, 150])
FEATURES = Features(np.stack([_TRAIN, np.zeros_like(_TRAIN)]), _VAL, _TEST)


def test_wrong_labels_are_found_in_every_split(dataset: Dataset) -> None:
    review = review_data(FEATURES, dataset, fit_logistic(3), [], seed=0)
    assert {(one.split, one.row, one.suggested) for one in review.wrong_labels} == {(s, 7, 1) for s in COUNTS}
    assert all(one.probability < 0.2 < 0.8 < one.suggested_probability for one in review.wrong_labels)


def test_accuracy_is_cross_validated_over_all_splits_if_the_test_images_are_few(dataset: Dataset) -> None:
    review = review_data(FEATURES, dataset, fit_logistic(3), [], seed=0)
    assert review.cross_validated is not None
    assert (review.cross_validated.images, review.cross_validated.folds) == (200, 5)
    assert review.cross_validated.accuracy == pytest.approx(197 / 200, abs=0.01)


def test_accuracy_is_not_cross_validated_if_there_are_enough_test_images(dataset: Dataset) -> None:
    targets = np.arange(FEW_TEST_IMAGES) % 3
    test = Split(np.zeros((FEW_TEST_IMAGES, 2, 2, 3), np.uint8), targets)
    enough = Dataset("data", dataset.labels, dataset.train, dataset.val, test)
    more = np.resize(_TEST[:48], (FEW_TEST_IMAGES, 8))  # copies, with the same labels
    review = review_data(replace(FEATURES, test=more), enough, fit_logistic(3), [], seed=0)
    assert review.cross_validated is None
    assert len(review.wrong_labels) == 2


def test_the_most_similar_pairs_come_first_and_all_are_counted(dataset: Dataset) -> None:
    pairs = [("train", row, "test", 1, 0.9 + row / 2000) for row in range(110)]
    review = review_data(FEATURES, dataset, fit_logistic(3), pairs, seed=0)
    assert review.near_duplicates[0] == NearDuplicate("train", 109, "test", 1, pairs[109][-1])
    assert (len(review.near_duplicates), review.near_duplicate_count) == (100, 110)


def test_a_review_is_read_as_it_was_written(dataset: Dataset, tmp_path: Path) -> None:
    assert Review.read(tmp_path) is None
    review = review_data(FEATURES, dataset, fit_logistic(3), [("val", 1, "test", 2, 0.99)], seed=0)
    review.save(tmp_path)
    assert Review.read(tmp_path) == review


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"cross_validated": null, "wrong_labels": [{}]}'])
def test_a_damaged_file_is_reported_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "review.json").write_text(content)
    with pytest.raises(RunError, match=r"review.json cannot be read: .*Delete it"):
        Review.read(tmp_path)
