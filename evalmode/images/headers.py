"""Headers of images: size, and the memory and work that decoding takes, before anything is decoded.

The time to read a header does not depend on the number of pixels. Files are parsed segment by segment or chunk by
chunk, and the number of these is limited. Parts that do not affect the pixels (profiles, texts, thumbnails, later
frames) are not passed to the decoders, which therefore never parse them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from evalmode.errors import ImageEmpty, ImageTooLarge, ImageTooManyPixels, ImageUnreadable
from evalmode.images.formats import SERVED_FORMATS, ImageFormat
from evalmode.images.unsupported import describe_unsupported
from evalmode.limits import Limits

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 65_535  # pixels: the limit of JPEG. Rows are decoded, composited and resized as a whole


class Header(NamedTuple):
    """The header of an image.

    Attributes:
        format: The name of the format.
        width: Pixels, before the orientation is applied.
        height: Pixels, before the orientation is applied.
        orientation: The orientation of a JPEG or a TIFF, 1 to 8; 1 for other formats, see ``find_orientation`` of their
            codecs.
        image: The encoded bytes, all of them.
        kept: Start and end of the parts that are passed to the decoder; empty if all bytes are.
        decoder_bytes: Memory that the decoder takes for the picture and for its own use.
        row_bytes: Memory of one row of the decoder's buffers.
        components: For a JPEG that TurboJPEG decodes: 1 grey, 3 colour, 4 CMYK or YCCK. 0 for all other images.
        direct: The mode that the decoder returns, RGB or L, if no conversion of it can be needed; "" if it returns
            another one, or there is transparency or an orientation to apply.
        oriented: The chunks of a PNG that may hold its orientation: name, start and end of the content.
        exif_damaged: Whether the orientation may be lost with a damaged EXIF block.
        scale: A JPEG is decoded at 1/scale of its size: 1, 2, 4 or 8. 1 for other formats.
    """

    format: str
    width: int
    height: int
    orientation: int
    image: bytes
    kept: tuple[tuple[int, int], ...]
    decoder_bytes: int
    row_bytes: int = 0
    components: int = 0
    direct: str = ""
    oriented: tuple[tuple[bytes, int, int], ...] = ()
    exif_damaged: bool = False
    scale: int = 1

    @property
    def decoded_size(self) -> tuple[int, int]:
        """Width and height of the decoded picture, before the orientation is applied."""
        return -(-self.width // self.scale), -(-self.height // self.scale)

    def cut(self) -> bytes:
        """Return the bytes that are passed to the decoder."""
        whole = memoryview(self.image)
        return b"".join(whole[start:end] for start, end in self.kept) if self.kept else self.image


@dataclass(frozen=True)
class Codec:
    """The functions that read and decode images of one format.

    Attributes:
        read_header: Reads the header of encoded bytes, within limits. ``struct.error`` and ``IndexError`` mean that the
            image is truncated.
        open: Opens a file by Pillow, without loading its pixels.
        find_orientation: Returns the EXIF orientation of an image that ``open`` opened.
        check: Checks what Pillow does not: raises ``ImageUnreadable`` if the encoded bytes are damaged.
    """

    read_header: Callable[[bytes, Limits], Header]
    open: Callable[[BytesIO], Image.Image]
    find_orientation: Callable[[Header, Image.Image], int]
    check: Callable[[bytes], None] = lambda image: None


def read_header(image: bytes, limits: Limits, formats: Sequence[ImageFormat] = SERVED_FORMATS) -> Header:
    """Read the header of an image: what is needed to decode it, and the memory that this takes.

    Args:
        image: Encoded bytes.
        limits: ``max_image_bytes`` and ``max_image_pixels``.
        formats: The formats that are allowed: by default those that are safe to decode for strangers.

    Raises:
        ImageEmpty: There are no bytes.
        ImageTooLarge: There are more bytes than ``max_image_bytes``.
        ImageTooManyPixels: There are more pixels than ``max_image_pixels``.
        ImageTooComplex: Decoding takes more work than images of this size need.
        ImageFormatNotAllowed: The format is not allowed, or the package that decodes it is not installed.
        ImageUnreadable: The bytes are not an image, or the header is truncated or damaged.
    """
    if not image:
        raise ImageEmpty("image is empty: 0 bytes")
    if len(image) > limits.max_image_bytes:
        raise ImageTooLarge(
            f"image is {len(image)} bytes, the limit is {limits.max_image_bytes}: send a smaller one",
            size_bytes=len(image),
            limit_bytes=limits.max_image_bytes,
        )
    for image_format in formats:
        if image_format.signature.match(image):
            try:
                return image_format.codec.read_header(image, limits)
            except (struct.error, IndexError) as error:
                raise ImageUnreadable("image is truncated or damaged: it ends in its header", cause=error) from error
    raise describe_unsupported(image, formats)


def make_damaged(error: Exception) -> ImageUnreadable:
    """Return the error for an image that a decoder has refused with ``error``."""
    return ImageUnreadable(f"image is truncated or damaged: {error}", cause=error)


def check_pixel_count(size: tuple[int, ...], limits: Limits) -> None:
    """Check the size of an image.

    Args:
        size: Width and height, pixels.
        limits: ``max_image_pixels``.

    Raises:
        ImageTooManyPixels: There are more pixels, or a side is longer than ``MAX_SIDE``.
    """
    width, height = size
    if max(size) > MAX_SIDE and width * height <= limits.max_image_pixels:
        raise ImageTooManyPixels(
            f"image is {width}x{height} pixels, the limit is {MAX_SIDE} a side: send a part of it",
            pixels=width * height,
            limit_pixels=limits.max_image_pixels,
        )
    if width * height > limits.max_image_pixels:
        raise ImageTooManyPixels(
            f"image is {width}x{height} = {width * height} pixels, the limit is {limits.max_image_pixels}: "
            "send a smaller one",
            pixels=width * height,
            limit_pixels=limits.max_image_pixels,
        )
