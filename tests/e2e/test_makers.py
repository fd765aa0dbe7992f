"""Networks of other libraries answer as their own library does, served as their files state it.

tests/foreign/networks holds small ones, with the answers of the library for tests/foreign/photos. Those come from
tests/foreign/makers, and tests/foreign/agreement.py compares them all for 200 photos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from evalmode.certification.found.found import find_network
from evalmode.images.pixels import PixelContract, decode_image
from evalmode.limits import OWN_IMAGES
from tests.foreign.agreement import MAX_DIFFERENCE, Agreement, measure, read_answers, show

FOREIGN = Path(__file__).parents[1] / "foreign"
PHOTOS = FOREIGN / "photos"
MAKERS = sorted(path.name for path in (FOREIGN / "networks").iterdir() if path.is_dir())
RULES: dict[str, tuple[str, Any]] = {  # a rule that the files of timm would state wrongly
    "as it is": ("crop_ratio", 160 / 168),
    "interpolation": ("interpolation", "bilinear"),
    "ratio": ("crop_ratio", 160 / 182),
    "squash": ("resize", "squash"),
    "letterbox": ("resize", "letterbox"),
    "BGR": ("bgr", True),
    "mean": ("mean", (0.5, 0.5, 0.5)),
    "std": ("std", (0.25, 0.25, 0.25)),
    "scale": ("scale", (-1.0, 1.0)),
}


@pytest.fixture(scope="module")
def agreements() -> dict[str, Agreement]:
    """The agreement of each network, by name: all are served by one server."""
    return {found.maker: found for found in measure([FOREIGN / "networks" / name for name in MAKERS], PHOTOS)}


@pytest.mark.parametrize("name", MAKERS)
def test_answers_are_those_of_the_library(name: str, agreements: dict[str, Agreement]) -> None:
    found = agreements[name]
    assert found.photos == len(list(PHOTOS.glob("*/*")))
    assert found.holds, show(found)


@pytest.mark.parametrize("name", ["timm", "transformers-mobilenet", "transformers-vit", "ultralytics"])
def test_no_option_is_typed_where_the_files_say_all(name: str, agreements: dict[str, Agreement]) -> None:
    assert agreements[name].options == []


@pytest.mark.parametrize("name", MAKERS)
def test_the_library_tells_the_photos_apart(name: str) -> None:
    """Otherwise a server could agree by chance."""
    answers = read_answers(FOREIGN / "networks" / name / "answers.npz").probabilities
    assert len(set(answers.argmax(axis=1))) > 1
    assert answers.std(axis=0).max() > 20 * MAX_DIFFERENCE


@pytest.mark.parametrize("changed", RULES)
def test_a_wrong_rule_is_noticed(changed: str) -> None:
    name, value = RULES[changed]
    stated = {name: value} | ({"crop_ratio": 1.0} if value == "letterbox" else {})
    answers = read_answers(FOREIGN / "networks" / "timm" / "answers.npz")
    largest = np.abs(answer("timm", answers.names, stated) - answers.probabilities).max()
    assert (largest <= MAX_DIFFERENCE) == (changed == "as it is"), largest


def answer(network: str, photos: tuple[str, ...], stated: dict[str, Any]) -> np.ndarray:
    """The probabilities of a network with the facts of its files, except those that are stated."""
    found = find_network(FOREIGN / "networks" / network / "network", stated)
    height, width, *_ = found.size
    contract = PixelContract(height, width, 3, found.resize)
    pixels = np.stack([decode_image((PHOTOS / photo).read_bytes(), contract, OWN_IMAGES) for photo in photos])
    (low, high), rules = found.preprocessing.scale, found.preprocessing
    values = (pixels[..., ::-1] if rules.bgr else pixels) / 255 * (high - low) + low
    tensor = ((values - rules.mean) / rules.std).transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(found.file)
    (logits,) = session.run(None, {session.get_inputs()[0].name: tensor})
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)
