"""How image bytes become pixels: the one function that training and serving share.

Every rule here is a row of the decoding table in docs/architecture.md and a test in tests/serving/test_pixels.py.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from serving.errors import (
    ImageEmpty,
    ImageError,
    ImageFormatNotAllowed,
    ImageTooLarge,
    ImageTooManyPixels,
    ImageUnreadable,
    PixelsMismatch,
)
from serving.limits import IMAGE_FORMATS, Limits

Pixels = npt.NDArray[np.uint8]

RESIZE = "shorter side resized, centre cropped (Pillow, bilinear, antialiased)"
TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTED = (b"Exif\0\0", b"tiff:Orientation")  # what stands before a JPEG's orientation, in EXIF and in XMP
PLAIN = {("YCbCr", 3): "RGB", ("Gray", 3): "RGB", ("Gray", 1): "GRAY"}  # a JPEG's colours, the channels wanted
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class PixelContract:
    """The shape of the pixels a network sees: uint8 (height, width, channels), channels 3 (RGB) or 1 (grey)."""

    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels


def decode_image(image: bytes, contract: PixelContract, limits: Limits) -> Pixels:
    """Decode an encoded image to the pixels a network sees.

    EXIF orientation is applied, transparency composited over white, 16-bit grey divided by 257; the first frame of an
    animation counts; colours become what ``contract`` wants; another size is resized and centre cropped.

    Returns:
        uint8 (height, width, channels), values 0..255.

    Raises:
        ImageError: empty, over a limit, of a format not allowed, truncated, or not an image.
    """
    pixels = _decode_plain_jpeg(image, contract.channels, limits)
    if pixels is None:
        picture = _decode_picture(image, contract.channels, limits)
    elif pixels.shape == contract.shape:
        return pixels
    else:
        picture = Image.fromarray(pixels if contract.channels == 3 else pixels[:, :, 0])
    size = (contract.width, contract.height)
    if picture.size != size:
        picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(contract.shape)


def decode_whole(image: bytes, channels: int, limits: Limits) -> Pixels:
    """Decode an encoded image to pixels of its own size, else as ``decode_image``.

    Returns:
        uint8 (height, width, channels), values 0..255.

    Raises:
        ImageError: as ``decode_image``.
    """
    pixels = _decode_plain_jpeg(image, channels, limits)
    if pixels is not None:
        return pixels
    picture = _decode_picture(image, channels, limits)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def probe_image(image: bytes, limits: Limits) -> PixelContract:
    """Read from an image's header what shape its pixels have by themselves, orientation applied.

    Raises:
        ImageError: as ``decode_image``, as far as the header tells.
    """
    with _opened(image, limits) as opened:
        width, height = opened.size
        if _orientation(opened) in (5, 6, 7, 8):  # turned on its side
            width, height = height, width
        grey = opened.mode in ("1", "L", "LA", "La", *SIXTEEN_BIT)
        return PixelContract(height, width, 1 if grey else 3)


def check_pixels(data: bytes, shape: tuple[int, int, int], contract: PixelContract) -> Pixels:
    """View raw bytes as the pixels a network sees, without a copy.

    Returns:
        uint8 (height, width, channels).

    Raises:
        PixelsMismatch: ``shape`` is not the contract's, or ``data`` is not as long as it says.
    """
    if shape != contract.shape:
        raise PixelsMismatch(
            f"pixels are {_by(shape)}, the model wants {_by(contract.shape)} (height x width x channels); "
            "send the encoded image to have it resized",
            shape=_by(shape),
            wanted_shape=_by(contract.shape),
        )
    wanted_bytes = contract.height * contract.width * contract.channels
    if len(data) != wanted_bytes:
        raise PixelsMismatch(
            f"pixels of {_by(shape)} are {wanted_bytes} bytes of uint8, got {len(data)}",
            size_bytes=len(data),
            wanted_bytes=wanted_bytes,
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


@contextmanager
def _opened(image: bytes, limits: Limits) -> Iterator[Image.Image]:
    """Open an image that is within the limits; whatever Pillow raises on hostile bytes becomes an ImageError."""
    _check_size(image, limits)
    try:
        with Image.open(io.BytesIO(image), formats=IMAGE_FORMATS) as opened:
            _check_pixel_count(opened.size, limits)
            yield opened
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(image) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooManyPixels(
            f"image is too large to decode, the limit is {limits.max_image_pixels} pixels: {error}",
            limit_pixels=limits.max_image_pixels,
        ) from error
    except Exception as error:  # decoders raise a dozen types: OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageUnreadable(f"image is truncated or damaged: {error}", cause=error) from error


def _decode_picture(image: bytes, channels: int, limits: Limits) -> Image.Image:
    """Any image by Pillow: the picture upright and in the colours wanted, of its own size."""
    with _opened(image, limits) as opened:
        opened.load()  # raises where the image is damaged; reading EXIF may load, too, and would hide it
        turn = TURNS.get(_orientation(opened))
        return _to_colours(opened.transpose(turn) if turn is not None else opened, channels)


def _decode_plain_jpeg(image: bytes, channels: int, limits: Limits) -> Pixels | None:
    """A JPEG without an orientation, by the library that Pillow calls, too: the same bits, without Pillow's parsing.

    Returns:
        uint8 (height, width, channels); None where Pillow has to look: another format, other colours, or damaged.
    """
    _check_size(image, limits)
    if not image.startswith(b"\xff\xd8\xff") or any(told in image for told in ORIENTED):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
        if (colours, channels) not in PLAIN:
            return None
        _check_pixel_count((width, height), limits)
        pixels: Pixels = simplejpeg.decode_jpeg(image, PLAIN[colours, channels])
    except (ValueError, MemoryError):
        return None
    return pixels


def _check_size(image: bytes, limits: Limits) -> None:
    if not image:
        raise ImageEmpty("image is empty: 0 bytes")
    if len(image) > limits.max_image_bytes:
        raise ImageTooLarge(
            f"image is {len(image)} bytes, the limit is {limits.max_image_bytes}: send a smaller one",
            size_bytes=len(image),
            limit_bytes=limits.max_image_bytes,
        )


def _check_pixel_count(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_image_pixels:
        raise ImageTooManyPixels(
            f"image is {width}x{height} = {width * height} pixels, the limit is {limits.max_image_pixels}: "
            "send a smaller one",
            pixels=width * height,
            limit_pixels=limits.max_image_pixels,
        )


def _unidentified(image: bytes) -> ImageError:
    """Tell an image of another format from bytes that are no image, by their first bytes alone."""
    Image.init()
    prefix = image[:16].ljust(16, b"\0")
    known = (
        name for name, (_, accept) in Image.OPEN.items() if name not in IMAGE_FORMATS and accept and accept(prefix)
    )
    name = next(known, None)
    allowed = ", ".join(IMAGE_FORMATS)
    if name is None:
        return ImageUnreadable(f"not an image: none of {allowed} begins with {image[:8]!r}", cause="unidentified")
    return ImageFormatNotAllowed(f"{name} images are not served: send one of {allowed}", format=name, allowed=allowed)


def _orientation(opened: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or a damaged block, on which ImageOps would stumble."""
    try:
        return int(opened.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _to_colours(picture: Image.Image, channels: int) -> Image.Image:
    """Bring any of Pillow's modes to RGB (3 channels) or L (1)."""
    if picture.mode in SIXTEEN_BIT:
        wide = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # 65535 / 257 = 255, to the nearest
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB" if channels == 3 else "L")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
