"""HEIC, the photos of iPhones, by libheif: the package pillow-heif, which is optional."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from evalmode.images.formats import FORMATS
from evalmode.images.headers import Codec, Header
from evalmode.images.opened import find_exif_orientation, read_by_opening
from evalmode.images.unsupported import make_not_allowed
from evalmode.limits import Limits


def _read_header(image: bytes, limits: Limits) -> Header:
    return read_by_opening("HEIC", _open, image, limits)


def _open(file: BytesIO) -> Image.Image:
    """Open a HEIC. libheif turns the picture upright, and pillow-heif sets the orientation in its EXIF block to 1.

    Raises:
        ImageFormatNotAllowed: pillow-heif is not installed.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        others = [one for one in FORMATS if one.name != "HEIC"]
        missing = "HEIC images need pillow-heif, which is not installed: pip install 'evalmode[heic]', or"
        raise make_not_allowed("HEIC", missing, others) from error
    opened: Image.Image = HeifImageFile(file)  # type: ignore[no-untyped-call]
    return opened


CODEC = Codec(_read_header, _open, find_exif_orientation)
