"""Decoding: the function that turns encoded images into pixels, shared by training, certification and the server.

Each rule is a row of the decoding table in docs/reference/images.md, and a test in test_pixels.py.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import numpy.typing as npt
from PIL import Image

from evalmode.errors import ImageError, ImageSizeMismatch, ImageUnreadable, PixelsMismatch
from evalmode.images.contract import PixelContract, Resize
from evalmode.images.formats import FORMATS, SERVED_FORMATS, ImageFormat
from evalmode.images.headers import Header, make_damaged, read_header
from evalmode.images.orientation import SIDEWAYS, SIXTEEN_BIT, make_upright
from evalmode.images.resizing import choose_jpeg_scale, fit_picture
from evalmode.images.turbojpeg import COLOURS, decode_picture, decompress, is_plain
from evalmode.limits import Limits

__all__ = [
    "CODECS",
    "PixelContract",
    "Pixels",
    "Resize",
    "check_pixels",
    "decode_by_header",
    "decode_image",
    "decode_whole",
    "decode_whole_by_header",
    "order_channels",
    "probe_header",
    "probe_image",
    "scale_header",
]

Pixels = npt.NDArray[np.uint8]

CODECS = {one.name: one for one in FORMATS}
for _served in SERVED_FORMATS:
    import_module(_served.module)  # now, so that no request waits for an import


def decode_image(
    image: bytes, contract: PixelContract, limits: Limits, formats: Sequence[ImageFormat] = SERVED_FORMATS
) -> Pixels:
    """Decode an encoded image to the pixels that a network takes.

    16-bit grey is divided by 257. The first frame of an animation is used. Colours, transparency, the EXIF orientation
    and other sizes are treated as the contract states.

    Args:
        image: Encoded bytes.
        contract: The pixels to decode to.
        limits: How large the image may be.
        formats: The formats that are allowed: by default those that are safe to decode for strangers.

    Returns:
        uint8 (height, width, channels), values 0..255.

    Raises:
        ImageError: The image is empty, exceeds a limit, is not of an allowed format, is truncated, or is not an image.
    """
    return decode_by_header(read_header(image, limits, formats), contract)


def decode_by_header(header: Header, contract: PixelContract) -> Pixels:
    """Decode an image whose header has been read, as ``decode_image`` does.

    Args:
        header: The header, which holds the encoded bytes.
        contract: The pixels to decode to.

    Returns:
        uint8 (height, width, channels), values 0..255.

    Raises:
        ImageUnreadable: The image is truncated or damaged.
    """
    header = _turn(header, contract)
    _check_size(header, contract)
    unchanged = contract.resize.keeps_exact_size or contract.resize.crop_ratio == 1
    if (header.width, header.height) == contract.size and unchanged and is_plain(header, contract.channels):
        return order_channels(decompress(header, COLOURS[contract.channels]), contract)
    decoded = _decode(scale_header(header, contract), contract)
    if decoded.size != contract.size or not unchanged:
        whole = decoded.size if header.format != "JPEG" else _find_upright_size(header)
        if contract.resize.mode == "none":
            raise _make_mismatch(decoded.size, contract)
        decoded = fit_picture(decoded, contract.size, contract.resize, whole)
    return order_channels(_to_pixels(decoded, contract.channels), contract)


def scale_header(header: Header, contract: PixelContract) -> Header:
    """Set the scale that an image is decoded at for a contract, and the memory that the decoder then takes.

    Args:
        header: The header of an image of any format.
        contract: The pixels to decode to.

    Returns:
        The header; the same object unless it is of a JPEG that is scaled, or whose orientation is not applied.
    """
    header = _turn(header, contract)
    if header.format != "JPEG" or not contract.resize.jpeg_scaling:
        return header
    upright = _find_upright_size(header)
    scale = choose_jpeg_scale(upright, contract.resize.find_target(upright, contract.size))
    if scale == 1:
        return header
    scaled = header._replace(scale=scale)
    whole_pixels, pixels = header.width * header.height, math.prod(scaled.decoded_size)
    saved_bytes = (whole_pixels - pixels) * (1 if header.components == 1 else 4)
    return scaled._replace(decoder_bytes=header.decoder_bytes - saved_bytes)


def decode_whole(
    image: bytes, channels: int, limits: Limits, formats: Sequence[ImageFormat] = SERVED_FORMATS
) -> Pixels:
    """Decode an encoded image to pixels of its own size, otherwise as ``decode_image`` does.

    Args:
        image: Encoded bytes.
        channels: 3 (RGB) or 1 (grey).
        limits: How large the image may be.
        formats: The formats that are allowed.

    Returns:
        uint8 (height, width, channels), values 0..255.

    Raises:
        ImageError: See ``decode_image``.
    """
    return decode_whole_by_header(read_header(image, limits, formats), channels)


def decode_whole_by_header(header: Header, channels: int) -> Pixels:
    """Decode an image whose header has been read, as ``decode_whole`` does.

    Args:
        header: The header, which holds the encoded bytes.
        channels: 3 (RGB) or 1 (grey).

    Returns:
        uint8 (height, width, channels), values 0..255.

    Raises:
        ImageUnreadable: The image is truncated or damaged.
    """
    if is_plain(header, channels):
        return decompress(header, COLOURS[channels])
    return _to_pixels(_decode(header, PixelContract(header.height, header.width, channels)), channels)


def probe_image(image: bytes, limits: Limits, formats: Sequence[ImageFormat] = SERVED_FORMATS) -> PixelContract:
    """Read the shape of an image's pixels from its header, with the orientation applied.

    Args:
        image: Encoded bytes.
        limits: How large the image may be.
        formats: The formats that are allowed.

    Raises:
        ImageError: See ``read_header``.
    """
    return probe_header(read_header(image, limits, formats))


def probe_header(header: Header) -> PixelContract:
    """Return the shape of the pixels of an image whose header has been read, with the orientation applied.

    Raises:
        ImageUnreadable: Pillow cannot read the header.
    """
    if header.components:
        size, orientation, grey = (header.width, header.height), header.orientation, header.components == 1
    else:
        with _open(header) as opened:
            size, orientation = opened.size, CODECS[header.format].codec.find_orientation(header, opened)
            grey = opened.mode in ("1", "L", "LA", "La", *SIXTEEN_BIT)
    width, height = size[::-1] if orientation in SIDEWAYS else size
    return PixelContract(height, width, 1 if grey else 3)


def order_channels(pixels: Pixels, contract: PixelContract) -> Pixels:
    """Bring red, green and blue to the order of a contract, or from that order to RGB.

    Args:
        pixels: uint8 (height, width, channels).
        contract: The pixels of a network.

    Returns:
        uint8 (height, width, channels); the same array unless the order is BGR.
    """
    return np.ascontiguousarray(pixels[:, :, ::-1]) if contract.channel_order == "BGR" else pixels


def check_pixels(data: bytes, shape: tuple[int, int, int], contract: PixelContract) -> Pixels:
    """View raw bytes as the pixels that a network takes, without a copy.

    Args:
        data: The values, uint8, row by row.
        shape: (height, width, channels) of the data.
        contract: The pixels that the network takes.

    Returns:
        uint8 (height, width, channels).

    Raises:
        PixelsMismatch: ``shape`` is not the contract's, or ``data`` has another size.
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
def _open(header: Header) -> Iterator[Image.Image]:
    """Open an image by Pillow, without a limit of Pillow's own; all exceptions inside become an ``ImageError``."""
    try:
        with CODECS[header.format].codec.open(io.BytesIO(header.cut())) as opened:
            if opened.size != (header.width, header.height):
                raise ImageUnreadable("image is truncated or damaged: it has two sizes", cause="two sizes")
            if header.scale > 1:
                opened.draft("", (header.width // header.scale, header.height // header.scale))
            yield opened
    except ImageError:
        raise
    except Exception as error:  # decoders raise a dozen types: OSError, SyntaxError, ValueError, struct.error, ...
        raise make_damaged(error) from error


def _turn(header: Header, contract: PixelContract) -> Header:
    """Return a header without its orientation, if the contract does not apply it."""
    return header if contract.exif_orientation or header.orientation == 1 else header._replace(orientation=1)


def _find_upright_size(header: Header) -> tuple[int, int]:
    """Return the upright size of a JPEG that is decoded at its full size."""
    size = header.width, header.height
    return size[::-1] if header.orientation in SIDEWAYS else size


def _check_size(header: Header, contract: PixelContract) -> None:
    """Check the size of an image before it is decoded, if the contract does not resize.

    Raises:
        ImageSizeMismatch: It has another size in either orientation.
    """
    size = header.width, header.height
    if contract.resize.mode == "none" and contract.size not in (size, size[::-1]):
        raise _make_mismatch(size, contract)


def _make_mismatch(size: tuple[int, int], contract: PixelContract) -> ImageSizeMismatch:
    shape, wanted = (_by(one) for one in (size, contract.size))
    return ImageSizeMismatch(
        f"image is {shape} pixels, the model wants exactly {wanted} (width x height) and resizes nothing: "
        "send an image of that size",
        size=shape,
        wanted_size=wanted,
    )


def _decode(header: Header, contract: PixelContract) -> Image.Image:
    """Decode an image to a picture of the size in its header, of mode RGB, RGBX or L, upright if the contract says so.

    Raises:
        ImageUnreadable: The image is truncated or damaged, as far as the decoder detects it.
    """
    if header.components:
        return make_upright(decode_picture(header, contract.channels), header.orientation, contract.channels)
    codec = CODECS[header.format].codec
    codec.check(header.image)
    with _open(header) as opened:
        opened.load()  # raises if the image is damaged
        if opened.size != header.decoded_size:  # libheif finds the size of some damaged files only now
            raise ImageUnreadable("image is truncated or damaged: it has two sizes", cause="two sizes")
        orientation = codec.find_orientation(header, opened) if contract.exif_orientation else 1
        return make_upright(opened, orientation, contract.channels, contract.background)


def _to_pixels(picture: Image.Image, channels: int) -> Pixels:
    """Convert a picture to uint8 (height, width, channels)."""
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    return pixels if pixels.shape[2] == channels else np.ascontiguousarray(pixels[:, :, :channels])


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
