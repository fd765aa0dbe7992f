"""Decoding JPEGs by TurboJPEG.

TurboJPEG gives the same bits as Pillow, which uses the same library, and raises on damage of which Pillow only warns.
"""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from evalmode.errors import ImageUnreadable
from evalmode.images.headers import Header, make_damaged
from evalmode.images.jpeg import is_progressive
from evalmode.images.orientation import TURNS

COPIED_PIXELS = 2**20  # up to here, copying a decoded JPEG is faster than resizing its fourth channel, too
COLOURS = {1: "GRAY", 3: "RGB"}  # simplejpeg's names, by the number of channels

# libjpeg-turbo warns of these, although the pixels are intact. Source: photos of some editors have JFIF version 0.xx;
# panoramas of Samsung's phones end the spectral selection of a baseline scan at 0, see stb_image.h ("should be 63, but
# might be 0").
_OLD_JFIF = re.compile(rb"(?<=JFIF\0)\0")
_EMPTY_SCAN = re.compile(rb"(?s)(?<=\xff\xda\x00)(\x08\x01..|\x0c\x03.{6})\0\0\0")


def is_plain(header: Header, channels: int) -> bool:
    """Return whether TurboJPEG returns the wanted pixels, before any resize.

    Args:
        header: The header of an image of any format.
        channels: 3 (RGB) or 1 (grey).
    """
    return header.orientation not in TURNS and (header.components, channels) in ((3, 3), (1, 3), (1, 1))


def decode_picture(header: Header, channels: int) -> Image.Image:
    """Decode a JPEG to a picture of its own orientation, at the scale in its header.

    Args:
        header: The header of a JPEG with ``components``.
        channels: 3 (RGB) or 1 (grey).

    Returns:
        A picture of mode L, RGB, CMYK or RGBX. A large one has RGBX, since it can share the memory of the decoder.

    Raises:
        ImageUnreadable: The image is truncated or damaged.
    """
    size = header.decoded_size
    if header.components == 1 and channels == 1:
        return Image.frombuffer("L", size, decompress(header, "GRAY"), "raw", "L", 0, 1)
    if header.components != 4 and math.prod(size) <= COPIED_PIXELS:
        return Image.fromarray(decompress(header, "RGB"))
    if header.components == 4:
        pixels = decompress(header, "CMYK")
        np.invert(pixels, out=pixels)  # Adobe's applications store it inverted, and Pillow reads it so
        return Image.frombuffer("CMYK", size, pixels, "raw", "CMYK", 0, 1)
    return Image.frombuffer("RGBX", size, decompress(header, "RGBX"), "raw", "RGBX", 0, 1)


def decompress(header: Header, colours: str) -> npt.NDArray[np.uint8]:
    """Decode a JPEG to pixels, at the scale in its header.

    Every byte of the file is read at any scale, so that damage is detected at any scale, too.

    Args:
        header: The header of a JPEG with ``components``.
        colours: simplejpeg's name of the colour space to decode to.

    Returns:
        uint8 (height, width, channels).

    Raises:
        ImageUnreadable: libjpeg-turbo warns of damaged or missing data.
    """
    image = header.image  # all of it: bytes between segments are damage, too
    try:
        return _decompress(image, header, colours)
    except (ValueError, MemoryError) as error:
        repaired = _repair_header(image)
        if repaired == image:
            raise make_damaged(error) from error
    try:
        return _decompress(repaired, header, colours)
    except (ValueError, MemoryError) as error:
        raise make_damaged(error) from error


def _repair_header(image: bytes) -> bytes:
    """Replace header values that cause a warning but do no harm.

    A scan of a progressive JPEG may legitimately contain the coefficients 0 to 0.
    """
    image = _OLD_JFIF.sub(b"\1", image)
    return image if is_progressive(image) else _EMPTY_SCAN.sub(b"\\1\0\x3f\0", image)


def _decompress(image: bytes, header: Header, colours: str) -> npt.NDArray[np.uint8]:
    """Decode ``image`` to the size in the header; simplejpeg takes the smallest scale that is large enough."""
    width, height = header.decoded_size if header.scale > 1 else (0, 0)
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(image, colours, min_height=height, min_width=width)
    if pixels.shape[1::-1] != header.decoded_size:
        raise ImageUnreadable("image is truncated or damaged: a JPEG of two sizes", cause="two sizes")
    return pixels
