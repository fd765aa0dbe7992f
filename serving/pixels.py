"""How image bytes become pixels: the one function that training and serving share.

Every rule here is a row of the decoding table in docs/architecture.md and a test in tests/serving/test_pixels.py.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

from serving.errors import (
    ImageEmpty,
    ImageError,
    ImageFormatNotAllowed,
    ImageTooLarge,
    ImageUnreadable,
    PixelsMismatch,
)
from serving.headers import Header, find_orientation, read_header
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
SIDEWAYS = (5, 6, 7, 8)  # the stored picture's rows are columns of the upright one
FROM_THE_END = (3, 4, 6, 7)  # the stored picture's first row is the upright one's last row or column
STRIP_PIXELS = 2**17  # what is converted at a time: a few MiB, and some milliseconds
PLAIN_PIXELS = 2**20  # of a JPEG that is decoded into an array first
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
    return decode_announced(announce_image(image, limits), contract)


def announce_image(image: bytes, limits: Limits) -> Header:
    """Read an image's header: what is needed to decode it, and what that takes.

    Raises:
        ImageError: as ``decode_image``, as far as the header tells.
    """
    if not image:
        raise ImageEmpty("image is empty: 0 bytes")
    if len(image) > limits.max_image_bytes:
        raise ImageTooLarge(
            f"image is {len(image)} bytes, the limit is {limits.max_image_bytes}: send a smaller one",
            size_bytes=len(image),
            limit_bytes=limits.max_image_bytes,
        )
    header = read_header(image, limits)
    if header is None:
        raise _unidentified(image)
    return header


def decode_announced(header: Header, contract: PixelContract) -> Pixels:
    """Decode an image whose header was read, as ``decode_image``."""
    decoded = _decode(header, contract.channels)
    if isinstance(decoded, np.ndarray):
        if decoded.shape == contract.shape:
            return decoded
        decoded = Image.fromarray(decoded if contract.channels == 3 else decoded[:, :, 0])
    size = (contract.width, contract.height)
    if decoded.size != size:
        decoded = ImageOps.fit(decoded, size, Image.Resampling.BILINEAR)
    return np.asarray(decoded).reshape(contract.shape)


def decode_whole(image: bytes, channels: int, limits: Limits) -> Pixels:
    """Decode an encoded image to pixels of its own size, else as ``decode_image``.

    Returns:
        uint8 (height, width, channels), values 0..255.

    Raises:
        ImageError: as ``decode_image``.
    """
    decoded = _decode(announce_image(image, limits), channels)
    if isinstance(decoded, np.ndarray):
        return decoded
    return np.asarray(decoded).reshape(decoded.height, decoded.width, channels)


def probe_image(image: bytes, limits: Limits) -> PixelContract:
    """Read from an image's header what shape its pixels have by themselves, orientation applied.

    Raises:
        ImageError: as ``decode_image``, as far as the header tells.
    """
    header = announce_image(image, limits)
    with _opened(header) as opened:
        width, height = opened.size
        if _orientation(header, opened) in SIDEWAYS:
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
def _opened(header: Header) -> Iterator[Image.Image]:
    """Open an image by Pillow; whatever it raises on hostile bytes becomes an ImageError."""
    try:
        with Image.open(io.BytesIO(header.cut()), formats=(header.format,)) as opened:
            if opened.size != (header.width, header.height):
                raise ImageUnreadable("image is truncated or damaged: it announces two sizes", cause="two sizes")
            yield opened
    except ImageError:
        raise
    except Exception as error:  # decoders raise a dozen types: OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageUnreadable(f"image is truncated or damaged: {error}", cause=error) from error


def _decode(header: Header, channels: int) -> Image.Image | Pixels:
    """An image upright and in the colours wanted, of its own size: a picture, or uint8 (height, width, channels)."""
    pixels = _decode_plain_jpeg(header, channels)
    if pixels is not None:
        return pixels
    with _opened(header) as opened:
        opened.load()  # raises where the image is damaged
        return _make_upright(opened, _orientation(header, opened), channels)


def _decode_plain_jpeg(header: Header, channels: int) -> Pixels | None:
    """A JPEG by the library that Pillow calls, too: the same bits, without Pillow's parsing.

    Returns:
        uint8 (height, width, channels); None where Pillow has to look: another format, other colours, damaged or to be
        turned; or large, because these pixels would have to be copied into a picture.
    """
    colours = PLAIN.get((header.colours, channels))
    if colours is None or header.orientation in TURNS or header.width * header.height > PLAIN_PIXELS:
        return None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(header.image, colours)
    except (ValueError, MemoryError):
        return None
    return pixels


def _make_upright(picture: Image.Image, orientation: int, channels: int) -> Image.Image:
    """Apply the orientation, and bring any of Pillow's modes to RGB (3 channels) or L (1).

    A strip at a time, because what conversions of the whole take is several times the picture.
    """
    mode = "RGB" if channels == 3 else "L"
    turn = TURNS.get(orientation)
    if picture.mode == mode and turn is None and not picture.has_transparency_data:
        return picture
    size = picture.size[::-1] if orientation in SIDEWAYS else picture.size
    upright = Image.new(mode, size, None)
    rows = max(1, STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        strip = _to_colours(picture.crop((0, top, picture.width, bottom)), channels)
        strip = strip if turn is None else strip.transpose(turn)
        start = picture.height - bottom if orientation in FROM_THE_END else top
        upright.paste(strip, (start, 0) if orientation in SIDEWAYS else (0, start))
    return upright


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
        return ImageUnreadable(f"not an image: it does not begin as {allowed} do", cause="unidentified")
    return ImageFormatNotAllowed(f"{name} images are not served: send one of {allowed}", format=name, allowed=allowed)


def _orientation(header: Header, opened: Image.Image) -> int:
    """The orientation, 1 to 8; 1 where there is none, or a damaged block, on which Pillow's reader would stumble."""
    if header.format == "JPEG":
        return header.orientation
    info: dict[Any, Any] = opened.info
    exif, xmp = info.get("exif"), info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
    try:
        if exif is None and (raw := info.get("Raw profile type exif")):
            exif = bytes.fromhex("".join(raw.split("\n")[3:]))
        return find_orientation(exif or b"", xmp.encode() if isinstance(xmp, str) else xmp)
    except Exception:
        return 1


def _to_colours(picture: Image.Image, channels: int) -> Image.Image:
    """Bring any of Pillow's modes to RGB (3 channels) or L (1)."""
    if picture.mode in SIXTEEN_BIT:
        wide = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # 65535 / 257 = 255, to the nearest
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, (0, 0), picture)  # the bits of alpha_composite, which would hold the interpreter's lock
        picture = white
    return picture.convert("RGB" if channels == 3 else "L")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
