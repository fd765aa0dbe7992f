"""Headers that the library of a format reads, which opens a file without decoding its pixels."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image

from evalmode.errors import ImageError
from evalmode.images.exif import find_orientation
from evalmode.images.headers import Header, check_pixel_count, make_damaged
from evalmode.limits import Limits

# The picture, the library's copy of it, that of its Python package, and planes of up to 16 bits.
BYTES_PER_PIXEL = 4 + 4 + 4 + 8


def read_by_opening(name: str, open_file: Callable[[io.BytesIO], Image.Image], image: bytes, limits: Limits) -> Header:
    """Read the header of an image by opening it.

    Args:
        name: The name of the format.
        open_file: Opens a file, without loading its pixels.
        image: Encoded bytes.
        limits: ``max_image_pixels``.

    Raises:
        ImageError: The library cannot open the image, or it exceeds a limit.
    """
    try:
        with open_file(io.BytesIO(image)) as opened:
            width, height = opened.size
    except ImageError:
        raise
    except Exception as error:  # the libraries raise many types
        raise make_damaged(error) from error
    check_pixel_count((width, height), limits)
    return Header(name, width, height, 1, image, (), width * height * BYTES_PER_PIXEL + 3 * len(image))


def find_exif_orientation(header: Header, opened: Image.Image) -> int:
    """Find the orientation in the EXIF block of an opened image; that in the XMP is not for these formats.

    Args:
        header: The header of the image.
        opened: The image.
    """
    return find_orientation(opened.info.get("exif") or b"")
