"""Pairs of almost equal images across splits, found by their features."""

from __future__ import annotations

import numpy as np
import pytest

from training.datasets import find_near_duplicates, near_duplicates


def draw(count: int, seed: int, common: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(common, 1, (count, 64)).astype(np.float32)


def noise(features: np.ndarray, scale: float, seed: int = 9) -> np.ndarray:
    return (features + scale * draw(len(features), seed)).astype(np.float32)


@pytest.fixture
def splits() -> dict[str, np.ndarray]:
    """Train 3 and 7 are almost test 1 and 0, train 5 almost validation 2, validation 4 almost test 6."""
    train, val, test = draw(30, 0, common=5.0), draw(8, 1, common=5.0), draw(9, 2, common=5.0)
    test[[1, 0]] = noise(train[[3, 7]], 0.1)
    val[2] = noise(train[[5]], 0.2)[0]
    test[6] = noise(val[[4]], 0.3)[0]
    return {"train": train, "val": val, "test": test}


WANTED = {("train", 3, "test", 1), ("train", 7, "test", 0), ("train", 5, "val", 2), ("val", 4, "test", 6)}


@pytest.mark.parametrize("rows", [1, 4, 7, 4096])
def test_almost_equal_images_of_different_splits_are_found(
    splits: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", rows)
    found = find_near_duplicates(splits)
    assert {pair[:4] for pair in found} == WANTED
    similarities = [pair[-1] for pair in found]
    assert similarities == sorted(similarities, reverse=True)
    assert found[-1][:4] == ("val", 4, "test", 6)
    mean = np.concatenate(list(splits.values())).mean(0)
    for split, row, other, other_row, similarity in found:
        a, b = splits[split][row] - mean, splits[other][other_row] - mean
        assert similarity == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)


def test_the_threshold_decides(splits: dict[str, np.ndarray]) -> None:
    similarities = sorted(pair[-1] for pair in find_near_duplicates(splits))
    assert len(find_near_duplicates(splits, similarities[1])) == 3
    assert len(find_near_duplicates(splits, similarities[1] + 1e-5)) == 2


def test_each_image_is_paired_with_the_most_similar_one() -> None:
    """So that a thousand frames of a film are a thousand pairs, not a million."""
    frame = draw(1, 0)
    train = np.concatenate([noise(np.repeat(frame, 20, 0), 0.2, 1), draw(20, 2)])
    test = np.concatenate([noise(np.repeat(frame, 10, 0), 0.2, 3), draw(20, 4)])
    test[4] = noise(train[[6]], 0.01)[0]
    found = find_near_duplicates({"train": train, "test": test})
    assert sorted(pair[3] for pair in found) == list(range(10))
    assert ("train", 6, "test", 4) in {pair[:4] for pair in found}


def test_images_within_a_split_are_not_paired() -> None:
    assert find_near_duplicates({"train": np.repeat(draw(3, 0), 2, 0), "val": draw(5, 1)}) == []


@pytest.mark.parametrize("names", [(), ("train",), ("train", "val")])
def test_splits_may_be_missing_or_empty(names: tuple[str, ...]) -> None:
    assert find_near_duplicates({name: draw(4, seed) for seed, name in enumerate(names)}) == []
    (pair,) = find_near_duplicates({"train": draw(4, 0), "val": draw(0, 0), "test": draw(4, 0)[:1]})
    assert pair[:4] == ("train", 0, "test", 0)
    assert pair[4] == pytest.approx(1)


def test_features_that_are_all_equal_or_not_finite_are_no_pairs() -> None:
    assert find_near_duplicates({"train": np.ones((3, 8), np.float32), "test": np.ones((3, 8), np.float32)}) == []
    broken = draw(3, 0)
    broken[1, 5] = np.nan
    assert find_near_duplicates({"train": broken, "test": draw(3, 1)}) == []
