"""The page of ``compare`` shows every changed image as the models received it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evalmode.certification.compare import Changed, Comparison, LabelChange
from evalmode.certification.page import SIDE, write_page
from evalmode.images.pixels import decode_whole
from evalmode.limits import OWN_IMAGES
from tests.conftest import encode, plain


def show(image: bytes, folder: Path) -> Image.Image:
    """Write a page with an image, and return the picture on it."""
    (folder / "image").write_bytes(image)
    changed = [Changed(folder / "image", "red", "red", "blue")]
    labels = [LabelChange("red", 1, 0, 1)]
    write_page(folder / "page.html", Comparison(1, (1.0, 0.0), changed, labels, 1.0, 1.0, ()), "old", "new")
    (shown,) = re.findall(r"data:image/png;base64,([^\"]+)", (folder / "page.html").read_text())
    return Image.open(io.BytesIO(base64.b64decode(shown)))


def long_text() -> bytes:
    text = PngInfo()
    text.add_text("Comment", "x" * 2_000_000, zip=True)
    return encode(plain("red"), pnginfo=text)


IMAGES = {
    "two megabytes of text": long_text,
    "a damaged EXIF block": lambda: encode(plain("red"), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\x7f\0\2" + bytes(24)),
    "transparent": lambda: encode(plain((255, 0, 0, 0), mode="RGBA")),
    "16 bits": lambda: encode(Image.fromarray(np.full((4, 4), 30_000, np.uint16))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_has_the_pixels_that_the_models_received(name: str, tmp_path: Path) -> None:
    image = IMAGES[name]()
    np.testing.assert_array_equal(np.asarray(show(image, tmp_path)), decode_whole(image, 3, OWN_IMAGES))


def test_a_large_picture_is_reduced(tmp_path: Path) -> None:
    assert show(encode(plain("red", (600, 300))), tmp_path).size == (SIDE, SIDE // 2)
