"""How image bytes become pixels: the one function that training and serving share.

Every rule here is a row of the decoding table in docs/architecture.md, and a test in test_pixels.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import BmpImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from evalmode.errors import (
    ImageEmpty,
    ImageError,
    ImageFormatNotAllowed,
    ImageTooLarge,
    ImageUnreadable,
    PixelsMismatch,
)
from evalmode.images.headers import (
    Header,
    check_png,
    find_orientation,
    find_png_orientation,
    is_progressive,
    read_header,
)
from evalmode.limits import IMAGE_FORMATS, Limits

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
COPIED_PIXELS = 2**20  # of a JPEG: copying what is decoded is faster than resizing a fourth channel with it
STRIP_PIXELS = 2**17  # what is converted at a time: a few MiB, and some milliseconds
OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {  # what Image.open calls, without a limit of its own
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
BRANDS = {  # of files that begin with an ftyp box. Source: ISO/IEC 23008-12, annex B; AV1 Image File Format
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"},
}
FTYP_BYTES = 256  # of an ftyp box that are looked at
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")  # a codestream, a container
PLAIN = {1: "GRAY", 3: "RGB"}  # channels -> simplejpeg's name

# What libjpeg-turbo warns of in photos whose pixels are whole. Source: photos of some editors say JFIF 0.xx; panoramas
# of Samsung's phones end the spectral selection of a baseline scan at 0, see stb_image.h ("should be 63, but might be
# 0").
OLD_JFIF = re.compile(rb"(?<=JFIF\0)\0")
EMPTY_SCAN = re.compile(rb"(?s)(?<=\xff\xda\x00)(\x08\x01..|\x0c\x03.{6})\0\0\0")
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
    size = (contract.width, contract.height)
    if (header.width, header.height) == size and _is_plain_jpeg(header, contract.channels):
        return _decompress(header, PLAIN[contract.channels])
    decoded = _decode(header, contract.channels)
    if decoded.size != size:
        decoded = ImageOps.fit(decoded, size, Image.Resampling.BILINEAR)
    return _to_pixels(decoded, contract.channels)


def decode_whole(image: bytes, channels: int, limits: Limits) -> Pixels:
    """Decode an encoded image to pixels of its own size, else as ``decode_image``.

    Returns:
        uint8 (height, width, channels), values 0..255.

    Raises:
        ImageError: as ``decode_image``.
    """
    return decode_announced_whole(announce_image(image, limits), channels)


def decode_announced_whole(header: Header, channels: int) -> Pixels:
    """Decode an image whose header was read, as ``decode_whole``."""
    if _is_plain_jpeg(header, channels):
        return _decompress(header, PLAIN[channels])
    return _to_pixels(_decode(header, channels), channels)


def probe_image(image: bytes, limits: Limits) -> PixelContract:
    """Read from an image's header what shape its pixels have by themselves, orientation applied.

    Raises:
        ImageError: as ``decode_image``, as far as the header tells.
    """
    return probe_announced(announce_image(image, limits))


def probe_announced(header: Header) -> PixelContract:
    """Read the shape of an image whose header was read, as ``probe_image``."""
    if header.components:
        size, orientation, grey = (header.width, header.height), header.orientation, header.components == 1
    else:
        with _opened(header) as opened:
            size, orientation = opened.size, _orientation(header, opened)
            grey = opened.mode in ("1", "L", "LA", "La", *SIXTEEN_BIT)
    width, height = size[::-1] if orientation in SIDEWAYS else size
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
        with OPENERS[header.format](io.BytesIO(header.cut())) as opened:
            if opened.size != (header.width, header.height):
                raise ImageUnreadable("image is truncated or damaged: it announces two sizes", cause="two sizes")
            yield opened
    except ImageError:
        raise
    except Exception as error:  # decoders raise a dozen types: OSError, SyntaxError, ValueError, struct.error, ...
        raise _damaged(error) from error


def _decode(header: Header, channels: int) -> Image.Image:
    """An image upright, of its own size and in the colours wanted; RGBX may stand for RGB.

    Raises:
        ImageUnreadable: It is damaged, as far as the format's decoder knows.
    """
    if header.components:
        return _make_upright(_decode_jpeg(header, channels), header.orientation, channels)
    if header.format == "PNG":
        check_png(header.image)
    with _opened(header) as opened:
        opened.load()  # raises where the image is damaged
        return _make_upright(opened, _orientation(header, opened), channels)


def _is_plain_jpeg(header: Header, channels: int) -> bool:
    """Whether what libjpeg-turbo decodes are the pixels wanted, if no other size is."""
    return header.orientation not in TURNS and (header.components, channels) in ((3, 3), (1, 3), (1, 1))


def _decode_jpeg(header: Header, channels: int) -> Image.Image:
    """A JPEG as a picture, a large one of RGBX, which shares the memory of what was decoded.

    TurboJPEG gives the bits of Pillow's decoder, which is the same library, and raises where that only warns.
    """
    size = (header.width, header.height)
    if header.components == 1 and channels == 1:
        return Image.frombuffer("L", size, _decompress(header, "GRAY"), "raw", "L", 0, 1)
    if header.components != 4 and header.width * header.height <= COPIED_PIXELS:
        return Image.fromarray(_decompress(header, "RGB"))
    if header.components == 4:
        pixels = _decompress(header, "CMYK")
        np.invert(pixels, out=pixels)  # as Adobe's applications store it, and Pillow reads it
        return Image.frombuffer("CMYK", size, pixels, "raw", "CMYK", 0, 1)
    return Image.frombuffer("RGBX", size, _decompress(header, "RGBX"), "raw", "RGBX", 0, 1)


def _decompress(header: Header, colours: str) -> Pixels:
    """A JPEG by TurboJPEG.

    Args:
        header: What it announces.
        colours: simplejpeg's name for those wanted.

    Returns:
        uint8 (height, width, channels).

    Raises:
        ImageUnreadable: libjpeg-turbo warns of corrupt or missing data.
    """
    image = header.image  # all of it: bytes between segments are damage, too
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(image, colours)
    except (ValueError, MemoryError) as error:
        mended = _mend_header(image)
        if mended == image:
            raise _damaged(error) from error
    else:
        return _check_size(pixels, header)
    try:
        return _check_size(simplejpeg.decode_jpeg(mended, colours), header)
    except (ValueError, MemoryError) as error:
        raise _damaged(error) from error


def _mend_header(image: bytes) -> bytes:
    """An image without what is harmless; the scans of a progressive JPEG may well hold the coefficients 0 to 0."""
    image = OLD_JFIF.sub(b"\1", image)
    return image if is_progressive(image) else EMPTY_SCAN.sub(b"\\1\0\x3f\0", image)


def _check_size(pixels: Pixels, header: Header) -> Pixels:
    if pixels.shape[:2] != (header.height, header.width):
        raise ImageUnreadable("image is truncated or damaged: a JPEG of two sizes", cause="two sizes")
    return pixels


def _to_pixels(picture: Image.Image, channels: int) -> Pixels:
    """uint8 (height, width, channels)."""
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    return pixels if pixels.shape[2] == channels else np.ascontiguousarray(pixels[:, :, :channels])


def _damaged(error: Exception) -> ImageUnreadable:
    return ImageUnreadable(f"image is truncated or damaged: {error}", cause=error)


def _make_upright(picture: Image.Image, orientation: int, channels: int) -> Image.Image:
    """Apply the orientation, and bring any of Pillow's modes to RGB (3 channels) or L (1).

    A strip at a time, because what conversions of the whole take is several times the picture.
    """
    mode = "RGB" if channels == 3 else "L"
    turn = TURNS.get(orientation)
    if picture.mode in (mode, f"{mode}X") and turn is None and not picture.has_transparency_data:
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
    name = _find_brand(image) or _find_format(image)
    allowed = ", ".join(IMAGE_FORMATS)
    if not name:
        return ImageUnreadable(f"not an image: it does not begin as {allowed} do", cause="unidentified")
    hint = "; iPhones save JPEGs with Settings, Camera, Formats, Most Compatible" if name == "HEIC" else ""
    return ImageFormatNotAllowed(
        f"{name} images are not supported: convert the image to one of {allowed}{hint}", format=name, allowed=allowed
    )


def _find_brand(image: bytes) -> str:
    """HEIC or AVIF, by the brands of an ISO base media file; "" for others."""
    if image[4:8] != b"ftyp":
        return ""
    brands = {image[start : start + 4] for start in (8, *range(16, min(int.from_bytes(image[:4]), FTYP_BYTES), 4))}
    return next((name for name, known in BRANDS.items() if brands & known), "")


def _find_format(image: bytes) -> str:
    """Pillow's name of a format that is not decoded; "" where it knows none."""
    Image.init()
    prefix = image[:16].ljust(16, b"\0")
    known = (
        name for name, (_, accept) in Image.OPEN.items() if name not in IMAGE_FORMATS and accept and accept(prefix)
    )
    return next(known, "JPEG XL" if image.startswith(JPEG_XL) else "")


def _orientation(header: Header, opened: Image.Image) -> int:
    """The orientation, 1 to 8; 1 where there is none, or a damaged block, on which Pillow's reader would stumble."""
    if header.format == "JPEG":
        return header.orientation
    if header.format == "PNG":
        return find_png_orientation(header)
    info: dict[Any, Any] = opened.info
    return find_orientation(info.get("exif") or b"", info.get("xmp") or b"")


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
