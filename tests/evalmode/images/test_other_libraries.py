"""The pixel contract has the pixels of other libraries, as tests/foreign/make_pixels.py recorded them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evalmode.artifact.pixel_facts import read_contract
from evalmode.images.pixels import decode_image
from evalmode.limits import Limits
from tests.foreign.pixel_images import draw_images

CASES = json.loads((Path(__file__).parents[2] / "foreign" / "pixels.json").read_text())["cases"]
IMAGES = draw_images()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['library']}: {case['transform']}")
def test_the_pixels_are_those_of_the_library(case: dict[str, Any]) -> None:
    """Where they differ, they differ as far as the fixture says, and no further."""
    contract = read_contract(case["contract"])
    pixels = {name: decode_image(image, contract, Limits()) for name, image in IMAGES.items()}
    assert {*case["digests"], *case["differ"]} == IMAGES.keys()
    for name, digest in case["digests"].items():
        assert hashlib.sha256(pixels[name].tobytes()).hexdigest() == digest, name
    for name, kept in case["kept"].items():
        expected = np.asarray(Image.open(io.BytesIO(base64.b64decode(kept["png"])))).astype(np.int16)
        assert np.abs(pixels[name] - expected).max() == kept["largest"], name
