"""Pictures upright, and in the colours that a network takes: EXIF orientation, transparency, 16-bit grey."""

from __future__ import annotations

import numpy as np
from PIL import Image

from evalmode.images.resizing import Colour

WHITE: Colour = (255, 255, 255)
TURNS = {  # EXIF orientation -> the transposition that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # the rows of the stored picture are columns of the upright one
STRIP_PIXELS = 2**17  # converted at a time: a few MiB, and some milliseconds
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_FROM_THE_END = (3, 4, 6, 7)  # the first row of the stored picture is the last row or column of the upright one


def make_upright(
    picture: Image.Image, orientation: int, channels: int, background: Colour | None = WHITE
) -> Image.Image:
    """Apply the EXIF orientation to a picture, and convert it from any of Pillow's modes.

    The picture is converted in strips, since converting it at once takes several times its memory.

    Args:
        picture: Of any mode.
        orientation: 1 to 8; other values are treated as 1.
        channels: 3 (RGB) or 1 (grey).
        background: The colour under transparent pixels; None ignores the transparency.

    Returns:
        A picture of mode RGB, RGBX or L.
    """
    mode = "RGB" if channels == 3 else "L"
    turn = TURNS.get(orientation)
    if picture.mode in (mode, f"{mode}X") and turn is None and not picture.has_transparency_data:
        return picture
    size = picture.size[::-1] if orientation in SIDEWAYS else picture.size
    upright = Image.new(mode, size, None)
    rows = max(1, STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        strip = _convert(picture.crop((0, top, picture.width, bottom)), channels, background)
        strip = strip if turn is None else strip.transpose(turn)
        start = picture.height - bottom if orientation in _FROM_THE_END else top
        upright.paste(strip, (start, 0) if orientation in SIDEWAYS else (0, start))
    return upright


def _convert(picture: Image.Image, channels: int, background: Colour | None) -> Image.Image:
    """Convert a picture of any mode to RGB (3 channels) or L (1)."""
    if picture.mode in SIXTEEN_BIT:
        wide = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # 65535 / 257 = 255, to the nearest
    elif picture.has_transparency_data and background is not None:
        picture = picture.convert("RGBA")
        under = Image.new("RGB", picture.size, background)
        under.paste(picture, (0, 0), picture)  # the same bits as alpha_composite, which holds the interpreter's lock
        picture = under
    return picture.convert("RGB" if channels == 3 else "L")
