"""Views of training images: which they are, and what decides them."""

from __future__ import annotations

import numpy as np
import pytest

from training.views import choose_views, make_views

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 16, 3), np.uint8)
ROWS = np.arange(6)


def test_the_first_view_is_the_image_and_the_second_its_mirror_image() -> None:
    assert np.array_equal(make_views(IMAGES, 0, ROWS, True, 0), IMAGES)
    assert np.array_equal(make_views(IMAGES, 1, ROWS, True, 0), IMAGES[:, :, ::-1])


def test_without_mirroring_no_view_is_mirrored() -> None:
    """Of images that become brighter to the right, no view becomes darker."""
    images = np.broadcast_to(np.arange(0, 240, 15, dtype=np.uint8)[:, None], (40, 12, 16, 3))
    rows = np.arange(40)

    def count_mirrored(view: int, mirror: bool) -> int:
        views = make_views(images, view, rows, mirror, 0).astype(int)
        return int((views[:, :, 0].mean((1, 2)) > views[:, :, -1].mean((1, 2))).sum())

    assert count_mirrored(1, mirror=False) == count_mirrored(2, mirror=False) == 0
    assert 10 < count_mirrored(2, mirror=True) < 30


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_have_the_shape_of_the_images(channels: int) -> None:
    crops = make_views(IMAGES[..., :channels], 2, ROWS, True, 0)
    assert crops.shape == (6, 12, 16, channels)
    assert crops.dtype == np.uint8
    assert not np.array_equal(crops, IMAGES[..., :channels])


def test_crops_show_half_of_the_image_or_more() -> None:
    """Of a ramp, the range of a crop is the share of the width that it shows."""
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None], (100, 64, 64, 1))
    crops = make_views(ramp, 2, np.arange(100), False, 0).astype(int)
    shares = (crops[:, 0, -1, 0] - crops[:, 0, 0, 0]) / 255
    assert shares.min() > np.sqrt(0.5 / (4 / 3)) - 0.05
    assert shares.max() <= 1
    assert shares.std() > 0.05


def test_seed_view_and_row_decide_a_crop_and_nothing_else_does() -> None:
    crops = make_views(IMAGES, 2, ROWS, True, 7)
    assert np.array_equal(crops, make_views(IMAGES, 2, ROWS, True, 7))
    assert np.array_equal(crops[3:5], make_views(IMAGES[3:5], 2, ROWS[3:5], True, 7))  # of any share of the images
    for other in (
        make_views(IMAGES, 2, ROWS, True, 8),
        make_views(IMAGES, 3, ROWS, True, 7),
        make_views(IMAGES, 2, ROWS + 1, True, 7),
    ):
        assert not np.array_equal(crops, other)


def test_each_image_goes_through_all_of_its_views() -> None:
    chosen = np.array([choose_views(50, 4, epoch, 3) for epoch in range(1, 5)])
    assert np.array_equal(np.sort(chosen, 0), np.broadcast_to(np.arange(4)[:, None], (4, 50)))
    assert np.ptp(np.bincount(chosen[0])) <= 1
    assert not np.array_equal(chosen[0], choose_views(50, 4, 1, 4))
