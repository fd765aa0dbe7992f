"""BMP: the header, in any of the six versions that Pillow supports."""

from __future__ import annotations

import struct

from PIL import BmpImagePlugin

from evalmode.errors import ImageTooComplex
from evalmode.images.exif import read_pillow_orientation
from evalmode.images.headers import Codec, Header, check_pixel_count
from evalmode.limits import Limits

MAX_RLE_PIXELS = 1_000_000  # Pillow decodes run lengths in Python, one by one


def _read_header(image: bytes, limits: Limits) -> Header:
    (size,) = struct.unpack_from("<I", image, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", image, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<IIHHI", image, 18)
        if image[25] == 0xFF:  # a negative height: rows from the top
            height = 2**32 - height
    check_pixel_count((width, height), limits)
    pixels, bytes_per_pixel = width * height, 1 if bits <= 8 else 4
    if compression in (1, 2):
        if pixels > MAX_RLE_PIXELS:
            raise ImageTooComplex(
                f"a BMP of {width}x{height} pixels in run lengths, the limit is {MAX_RLE_PIXELS}: save it again as PNG",
                pixels=pixels,
                limit_pixels=MAX_RLE_PIXELS,
            )
        bytes_per_pixel += 4  # the decoder's own copies
    direct = "RGB" if bits in (16, 24) else ""
    return Header("BMP", width, height, 1, image, (), pixels * bytes_per_pixel, 2 * (width * bits // 8), 0, direct)


CODEC = Codec(_read_header, BmpImagePlugin.BmpImageFile, lambda header, opened: read_pillow_orientation(opened))
