"""Explanations: where in an image the network sees a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evalmode.artifact.manifest import TensorManifest
from evalmode.artifact.sealing import seal
from evalmode.errors import ImagesNotTaken, ImageUnreadable, UsageError
from evalmode.runtime.loading import LoadOptions, load_artifact
from evalmode.runtime.model import ImageClassifier
from tests.conftest import colour_graph, encode, map_artifact, plain


def half_red() -> bytes:
    """A blue image whose right half is red."""
    picture = plain("blue")
    picture.paste("red", (2, 0, 4, 4))
    return encode(picture)


def test_holds_the_prediction_the_pixels_and_a_map_of_each_label(mapped: ImageClassifier) -> None:
    explanation = mapped.explain(half_red())
    assert explanation.prediction.scores == mapped.predict(half_red()).scores
    assert explanation.pixels[0, :, 0].tolist() == [0, 0, 255, 255]
    assert list(explanation.activations) == ["red", "green", "blue"]
    assert explanation.activations["red"].tolist() == [[0, 0, 10, 10]] * 4
    assert repr(explanation) == "Explanation('red', 0.498)"


def test_maps_have_the_size_of_the_pixels(mapped: ImageClassifier) -> None:
    assert np.array_equal(mapped.explain(half_red()).resize("blue"), [[10, 10, 0, 0]] * 4)


def test_the_heatmap_is_bright_where_the_label_is(mapped: ImageClassifier) -> None:
    explanation = mapped.explain(half_red())
    for label, place in (("red", 3), ("blue", 0)):
        picture = np.asarray(explanation.heatmap(label)).astype(int)
        colours = 2 * picture - explanation.pixels  # the overlay is half of the picture
        assert colours[0, place] == pytest.approx([252, 255, 164], abs=1)
        assert colours[0, 3 - place] == pytest.approx([0, 0, 4], abs=1)


def test_the_predicted_label_is_the_default(mapped: ImageClassifier) -> None:
    explanation = mapped.explain(encode(plain("blue")))
    assert np.array_equal(explanation.resize(), explanation.resize("blue"))


def test_is_saved_as_png(mapped: ImageClassifier, tmp_path: Path) -> None:
    explanation = mapped.explain(half_red())
    explanation.save(tmp_path / "a picture", "blue")
    with Image.open(tmp_path / "a picture") as saved:
        assert (saved.format, saved.size) == ("PNG", (4, 4))
        assert np.array_equal(np.asarray(saved), np.asarray(explanation.heatmap("blue")))


def test_an_unknown_label_is_refused(mapped: ImageClassifier, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="label 'pink' is unknown; the model has red, green, blue"):
        mapped.explain(half_red()).save(tmp_path / "x.png", "pink")
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_map_says_which_have_one(model: ImageClassifier) -> None:
    with pytest.raises(
        UsageError, match=r"has no activation_map: .* global average pooling and one dense layer have one"
    ):
        model.explain(half_red())


def test_a_network_of_tensors_is_refused() -> None:
    tensors = load_artifact(seal(colour_graph(), TensorManifest()), options=LoadOptions(allow_uncertified=True))
    with pytest.raises(ImagesNotTaken):
        tensors.explain(half_red())


def test_a_damaged_image_is_refused(mapped: ImageClassifier) -> None:
    with pytest.raises(ImageUnreadable):
        mapped.explain(half_red()[:40])


def test_the_pixels_of_a_bgr_network_are_shown_as_rgb() -> None:
    explanation = load_artifact(map_artifact("BGR")).explain(encode(plain("red")))
    assert explanation.prediction.label == "blue"  # the third channel
    assert np.array_equal(explanation.pixels, np.full((4, 4, 3), (255, 0, 0), np.uint8))
