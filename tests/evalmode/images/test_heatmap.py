"""Heatmaps: colours over an image."""

from __future__ import annotations

import numpy as np
import pytest

from evalmode.images.heatmap import INFERNO, draw_heatmap, resize_map


def test_the_lightness_of_the_colours_grows() -> None:
    lightness = INFERNO @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_is_a_colour_picture_of_the_size_of_the_image(channels: int) -> None:
    picture = draw_heatmap(np.full((6, 8, channels), 100, np.uint8), 5 + 10 * np.eye(2, dtype=np.float32))
    assert (picture.mode, picture.size) == ("RGB", (8, 6))
    corners = np.asarray(picture)[[0, 0], [0, -1]]
    assert corners.tolist() == [[176, 178, 132], [50, 50, 52]]


def test_a_constant_map_is_dark_everywhere() -> None:
    picture = draw_heatmap(np.zeros((4, 4, 3), np.uint8), np.full((2, 2), 3, np.float32))
    assert np.asarray(picture).max() == 2


def test_maps_are_resized_by_the_centres_of_their_positions() -> None:
    assert resize_map(np.array([[0, 4]], np.float32), 1, 4).tolist() == [[0, 1, 3, 4]]
