"""Input drift: images that differ from the training images are detected within a window; similar images are not."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from evalmode.artifact.image_statistics import MAX_SIDE, MOMENTS, crop_centre, describe_images, measure_moments
from serving.services.drift import LIMIT, WINDOW, RecentImage, drifts, measure_drift


def draw(count: int, seed: int, channels: int = 3, side: int = 12) -> np.ndarray:
    """Random images, uint8 (N, H, W, C), whose brightness, contrast and colour vary and whose pixels are correlated."""
    chance = np.random.default_rng(seed)
    steps = chance.normal(0, chance.uniform(2, 6, (count, 1, 1, 1)), (count, side, side, channels))
    level = chance.normal(120, 25, (count, 1, 1, 1)) + chance.normal(0, 10, (count, 1, 1, channels))
    return np.clip(level + steps.cumsum(1).cumsum(2), 0, 255).astype(np.uint8)


TRAINING = describe_images(draw(3000, 0))


def drift_of(images: np.ndarray, described: dict = TRAINING) -> dict[tuple[str, int], float]:
    return measure_drift(measure_moments(crop_centre(images)), described)


def test_moments_have_their_documented_values() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[..., ::2, 0] = 100  # stripes in the first channel, nothing in the second, a level in the third
    image[..., 2] = 30
    [moments] = measure_moments(image)
    moments_of = dict(zip(MOMENTS, moments, strict=True))
    np.testing.assert_allclose(moments_of["mean"], (50, 0, 30))
    np.testing.assert_allclose(moments_of["spread"], (50, 0, 0))
    np.testing.assert_allclose(moments_of["tint"], (50 - 80 / 3, -80 / 3, 30 - 80 / 3), rtol=1e-6)
    np.testing.assert_allclose(moments_of["detail"], np.log((101, 1, 1)), rtol=1e-6)
    np.testing.assert_allclose(moments_of["roughness"], np.log((200.5 / 100.5, 1, 1)), rtol=1e-6)


def test_training_images_are_described_by_mean_and_std_over_images() -> None:
    images = draw(50, 1)
    moments = measure_moments(images)
    described = describe_images(images)
    assert list(described) == list(MOMENTS)
    for row, name in enumerate(MOMENTS):
        np.testing.assert_allclose(described[name]["mean"], moments[:, row].mean(0), rtol=1e-5)
        np.testing.assert_allclose(described[name]["std"], moments[:, row].std(0), rtol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_kind_of_images_does_not_drift(seed: int) -> None:
    assert not drifts(drift_of(draw(WINDOW, 100 + seed)).values())


@pytest.mark.parametrize(
    ("moment", "change"),
    [
        ("mean", lambda images: np.clip(images + 40.0, 0, 255)),
        ("spread", lambda images: (images - 120.0) * 0.5 + 120),
        ("tint", lambda images: images[..., [0, 0, 0]] + np.array([0, 30.0, 0])),
        ("detail", lambda images: np.clip(images + np.random.default_rng(0).normal(0, 12, images.shape), 0, 255)),
        ("roughness", lambda images: images.repeat(2, 1).repeat(2, 2)[:, :12, :12]),
    ],
)
def test_a_change_is_detected_in_its_moment(moment: str, change) -> None:
    drift = drift_of(np.clip(change(draw(WINDOW, 7)), 0, 255).astype(np.uint8))
    assert drifts(drift.values())
    assert max(abs(distance) for (name, _), distance in drift.items() if name == moment) > LIMIT


def test_drift_is_measured_on_the_mean_of_the_window() -> None:
    images = draw(WINDOW, 3)
    known = {name: {"mean": [0.0] * 3, "std": [2.0] * 3} for name in MOMENTS}
    expected = images.mean((1, 2)).mean(0) / (2 / np.sqrt(WINDOW))
    assert [drift_of(images, known)["mean", channel] for channel in range(3)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 3), (8, 8, 1)])
def test_small_and_grey_images_are_supported(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (WINDOW, *shape)).astype(np.uint8)
    known = describe_images(images)
    assert not drifts(drift_of(images, known).values())
    assert drifts(drift_of(images // 2, known).values())


def test_large_images_are_cropped_to_their_centre() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3)).astype(np.uint8)
    middle = crop_centre(image)
    assert middle.shape == (MAX_SIDE, MAX_SIDE, 3)
    assert np.array_equal(middle, image[18:82, 68:132])
    assert not np.shares_memory(middle, image)  # the rest of the image can be freed
    assert np.array_equal(crop_centre(image[:10, :10]), image[:10, :10])


def test_the_pixels_of_an_image_are_freed_once_its_moments_are_measured() -> None:
    centre = draw(1, 5)[0].copy()
    expected, held = measure_moments(centre[np.newaxis])[0], weakref.ref(centre)
    image = RecentImage(1, centre)
    del centre
    assert held() is not None
    for _ in range(2):
        np.testing.assert_array_equal(image.moments, expected)
        assert held() is None
