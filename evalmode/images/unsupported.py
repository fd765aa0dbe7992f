"""The error for images of a format that is not decoded here, by the first bytes of a file."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from evalmode.errors import ImageError, ImageFormatNotAllowed, ImageUnreadable
from evalmode.images.formats import FORMATS, ImageFormat, name_formats

_JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")  # a codestream, a container


def describe_unsupported(image: bytes, formats: Sequence[ImageFormat]) -> ImageError:
    """Return the error for bytes that are not of an allowed image format.

    Args:
        image: The bytes; only the first are read.
        formats: The formats that are allowed.

    Returns:
        ``ImageFormatNotAllowed`` if the format is known, else ``ImageUnreadable``.
    """
    name = next((one.name for one in FORMATS if one.signature.match(image)), "") or _find_pillow_format(image)
    if not name:
        return ImageUnreadable(
            f"not an image: its first bytes are not those of {name_formats(formats)}", cause="unidentified"
        )
    return make_not_allowed(name, f"{name} images are not supported", formats)


def make_not_allowed(name: str, why: str, formats: Sequence[ImageFormat]) -> ImageFormatNotAllowed:
    """Return the error for an image of a known format.

    Args:
        name: The name of the format.
        why: Why it is not decoded.
        formats: The formats that are allowed.
    """
    allowed = name_formats(formats)
    hint = "; iPhones save JPEGs with Settings, Camera, Formats, Most Compatible" if name == "HEIC" else ""
    return ImageFormatNotAllowed(f"{why}: convert the image to one of {allowed}{hint}", format=name, allowed=allowed)


def _find_pillow_format(image: bytes) -> str:
    """Return Pillow's name of a format that evalmode never decodes; "" if Pillow does not know it."""
    Image.init()
    prefix = image[:16].ljust(16, b"\0")
    decoded = {one.name for one in FORMATS}
    known = (name for name, (_, accept) in Image.OPEN.items() if name not in decoded and accept and accept(prefix))
    return next(known, "JPEG XL" if image.startswith(_JPEG_XL) else "")
