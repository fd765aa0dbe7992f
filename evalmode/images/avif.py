"""AVIF, by libavif, which Pillow contains."""

from __future__ import annotations

from io import BytesIO

from PIL import AvifImagePlugin, Image

from evalmode.images.formats import FORMATS
from evalmode.images.headers import Codec, Header
from evalmode.images.opened import find_exif_orientation, read_by_opening
from evalmode.images.unsupported import make_not_allowed
from evalmode.limits import Limits


def _read_header(image: bytes, limits: Limits) -> Header:
    return read_by_opening("AVIF", _open, image, limits)


def _open(file: BytesIO) -> Image.Image:
    """Open an AVIF. Pillow sets the orientation in its EXIF block to that of its rotation and mirror properties.

    Raises:
        ImageFormatNotAllowed: Pillow was built without libavif.
    """
    if not AvifImagePlugin.SUPPORTED:
        others = [one for one in FORMATS if one.name not in ("AVIF", "HEIC")]
        raise make_not_allowed("AVIF", "this Pillow was built without libavif, which decodes AVIF images", others)
    return AvifImagePlugin.AvifImageFile(file)


CODEC = Codec(_read_header, _open, find_exif_orientation)
