"""Augmentation mirrors and shifts images: every pixel comes from the image, and draws are repeatable."""

from __future__ import annotations

import numpy as np
import pytest

from training.augment import augment, choose_mirrored, draw_offsets

NONE = np.zeros(200, bool)


def offsets(shift: int, seed: int = 0) -> np.ndarray:
    return draw_offsets(200, shift, np.random.default_rng(seed))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (200, 5, 7, 3), np.uint8)


def all_views(image: np.ndarray, shift: int) -> list[bytes]:
    """Every shift of one image, computed with NumPy from a reflected border."""
    padded = np.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="reflect")
    offsets = range(2 * shift + 1)
    return [padded[t : t + image.shape[0], l : l + image.shape[1]].tobytes() for t in offsets for l in offsets]  # noqa: E741


def test_images_without_mirroring_and_shift_are_unchanged(images: np.ndarray) -> None:
    assert np.array_equal(augment(images, NONE, 0, offsets(0)), images)


def test_mirroring_flips_only_the_chosen_images(images: np.ndarray) -> None:
    chosen = np.arange(200) % 3 == 0
    views = augment(images, chosen, 0, offsets(0))
    assert np.array_equal(views[chosen], images[chosen][:, :, ::-1])
    assert np.array_equal(views[~chosen], images[~chosen])


@pytest.mark.parametrize("shift", [1, 2])
def test_every_image_is_one_of_its_own_shifts(images: np.ndarray, shift: int) -> None:
    views = augment(images, NONE, shift, offsets(shift))
    found = [all_views(image, shift).index(view.tobytes()) for image, view in zip(images, views, strict=True)]
    assert set(found) == set(range((2 * shift + 1) ** 2))  # all of them occur, no direction is left out


def test_mirrored_images_are_shifted_too(images: np.ndarray) -> None:
    views = augment(images, ~NONE, 1, offsets(1))
    for image, view in zip(images, views, strict=True):
        assert view.tobytes() in all_views(image[:, ::-1], 1)


def test_the_original_images_are_not_changed(images: np.ndarray) -> None:
    before = images.copy()
    augment(images, ~NONE, 2, offsets(2))
    assert np.array_equal(images, before)


def test_equal_draws_give_equal_views_and_different_draws_different_views(images: np.ndarray) -> None:
    views = [augment(images, NONE, 2, offsets(2, seed)) for seed in (0, 0, 1)]
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])


@pytest.mark.parametrize("count", [1, 10, 1001])
def test_two_epochs_show_both_views_of_every_image(count: int) -> None:
    first, second, third = (choose_mirrored(count, epoch, seed=3) for epoch in (1, 2, 3))
    assert np.array_equal(first, ~second)
    assert np.array_equal(first, third)


def test_half_of_the_images_are_mirrored_and_the_seed_decides_which() -> None:
    masks = [choose_mirrored(1000, 1, seed) for seed in (0, 1)]
    assert [mask.sum() for mask in masks] == [500, 500]
    assert 400 < (masks[0] == masks[1]).sum() < 600
