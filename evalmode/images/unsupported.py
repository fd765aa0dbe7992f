"""Names of image formats that are not supported, for error messages, from the first bytes of a file."""

from __future__ import annotations

from PIL import Image

from evalmode.errors import ImageError, ImageFormatNotAllowed, ImageUnreadable
from evalmode.images.formats import IMAGE_FORMATS

# Brands of files that begin with an ftyp box. Source: ISO/IEC 23008-12, annex B; AV1 Image File Format.
_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"},
}
_MAX_FTYP_BYTES = 256  # of an ftyp box that are read
_JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")  # a codestream, a container


def describe_unsupported(image: bytes) -> ImageError:
    """Return the error for bytes that are not of a supported image format.

    Args:
        image: The bytes; only the first are read.

    Returns:
        ``ImageFormatNotAllowed`` if the format is known, else ``ImageUnreadable``.
    """
    name = _find_brand(image) or _find_pillow_format(image)
    allowed = ", ".join(IMAGE_FORMATS)
    if not name:
        return ImageUnreadable(f"not an image: its first bytes are not those of {allowed}", cause="unidentified")
    hint = "; iPhones save JPEGs with Settings, Camera, Formats, Most Compatible" if name == "HEIC" else ""
    return ImageFormatNotAllowed(
        f"{name} images are not supported: convert the image to one of {allowed}{hint}", format=name, allowed=allowed
    )


def _find_brand(image: bytes) -> str:
    """Return HEIC or AVIF, by the brands of an ISO base media file; "" for other files."""
    if image[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(image[:4]), _MAX_FTYP_BYTES)
    brands = {image[start : start + 4] for start in (8, *range(16, end, 4))}
    return next((name for name, known in _BRANDS.items() if brands & known), "")


def _find_pillow_format(image: bytes) -> str:
    """Return Pillow's name of an unsupported format; "" if Pillow does not know it."""
    Image.init()
    prefix = image[:16].ljust(16, b"\0")
    known = (
        name for name, (_, accept) in Image.OPEN.items() if name not in IMAGE_FORMATS and accept and accept(prefix)
    )
    return next(known, "JPEG XL" if image.startswith(_JPEG_XL) else "")
