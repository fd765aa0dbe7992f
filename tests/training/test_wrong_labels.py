"""Wrong labels are found by the probabilities of heads that were trained without the image."""

from __future__ import annotations

import numpy as np
import pytest

from training.cross_validation import cross_validate
from training.wrong_labels import count_wrong_labels, find_wrong_labels

from .test_cross_validation import draw_features, fit_logistic


def test_the_most_suspicious_comes_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.95, 0.05], [0.06, 0.94], [0.01, 0.99], [0.1, 0.9], [0.05, 0.95]])
    targets = np.array([0, 0, 0, 0, 1, 1])
    assert find_wrong_labels(probabilities, targets)[:2].tolist() == [3, 2]
    assert find_wrong_labels(probabilities, targets, limit=1).tolist() == [3]


def test_nothing_is_listed_if_every_label_is_the_most_probable() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.45, 0.55], [0.1, 0.9]])
    assert find_wrong_labels(probabilities, np.array([0, 0, 1, 1])).tolist() == []


@pytest.mark.parametrize(
    ("usual", "probability", "count"),
    [(0.7, 0.55, 0), (0.7, 0.69, 0), (0.7, 0.71, 1), (0.99, 0.79, 0), (0.99, 0.81, 1)],
)
def test_an_image_counts_if_another_label_is_as_probable_as_usual_or_at_least_080(
    usual: float, probability: float, count: int
) -> None:
    of_0, of_1 = [0.95, 0.05], [1 - usual, usual]
    probabilities = np.array([of_0, of_0, [1 - probability, probability], of_1, of_1])
    assert count_wrong_labels(probabilities, np.array([0, 0, 0, 1, 1])) == count


def test_a_label_without_images_is_never_suggested_by_the_count() -> None:
    probabilities = np.array([[0.1, 0.0, 0.9], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0]])
    assert count_wrong_labels(probabilities, np.array([0, 0, 1])) == 0


def test_probabilities_of_zero_are_ranked() -> None:
    probabilities = np.array([[0.0, 0.6, 0.4], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.1, 0.5, 0.4], [0.9, 0.1, 0.0]])
    assert find_wrong_labels(probabilities, np.array([0, 0, 0, 1, 0])).tolist() == [1, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_flipped_labels_are_found_by_cross_validation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 4, 600)
    features = draw_features(right, 1.2)
    flipped = rng.choice(600, 18, replace=False)
    targets = right.copy()
    targets[flipped] = (right[flipped] + rng.integers(1, 4, 18)) % 4
    probabilities = cross_validate(features, targets, fit_logistic(4), seed=seed)
    found = find_wrong_labels(probabilities, targets)
    hits = np.intersect1d(found, flipped)
    assert len(hits) >= 15
    assert len(hits) / len(found) > 0.6
    assert (probabilities.argmax(1) == right)[hits].mean() > 0.9
    clean = find_wrong_labels(cross_validate(features, right, fit_logistic(4), seed=seed), right)
    assert len(clean) < 0.05 * 600
