"""Small images of odd sizes, the same everywhere: what the pixels of other libraries are compared on."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SIZES = ((97, 61), (61, 97), (64, 48), (33, 33), (200, 37), (7, 5), (32, 32), (41, 35), (60, 50), (50, 60))
TURNED = 6  # EXIF: the first row is the right side


def draw_images() -> dict[str, bytes]:
    """Draw the images, encoded without loss, by name."""
    images = {f"{width}x{height}": _encode(_draw(width, height, 3)) for width, height in SIZES}
    exif = Image.Exif()
    exif[0x0112] = TURNED
    images["turned"] = _encode(_draw(83, 59, 3), exif)
    images["transparent"] = _encode(_draw(59, 83, 4))
    return images


def _draw(width: int, height: int, channels: int) -> Image.Image:
    """Blocks of different colours with noise, which every filter treats in another way."""
    rng = np.random.default_rng(width * height)
    rows, columns = np.arange(height)[:, None] // 5, np.arange(width) // 5
    blocks = rng.integers(0, 200, (height // 5 + 1, width // 5 + 1, channels))
    return Image.fromarray((blocks[rows, columns] + rng.integers(0, 56, (height, width, channels))).astype(np.uint8))


def _encode(picture: Image.Image, exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()
