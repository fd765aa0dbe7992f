"""Decoding of the images in requests, and the memory that it takes, computed from their headers."""

from __future__ import annotations

import logging
import math
import time

from evalmode.images.headers import Header
from evalmode.images.orientation import STRIP_PIXELS
from evalmode.images.pixels import PixelContract, Pixels, decode_by_header, scale_header
from evalmode.images.resizing import plan_resize
from evalmode.images.turbojpeg import COPIED_PIXELS
from serving.engine.decodes import SMALL_BYTES

log = logging.getLogger(__name__)

MIB = 1024 * 1024
EXIF_PAUSE_S = 60.0  # between log records about damaged EXIF blocks, which any client can send

# Memory for decoding in addition to the decoder's own, measured by benchmarks/speed/decode_cost.py.
BASE_BYTES = MIB
SIDE_BYTES = 64  # per row and column: row pointers of each picture, resize weights
STRIP_BYTES = 16  # per pixel of the strip that is being converted
SAMPLED_BYTES = 512  # per row and column of a picture and of its resize without antialiasing, which has 4x4 neighbours


def count_decode_bytes(header: Header, contract: PixelContract) -> int:
    """Compute the peak memory for decoding an image.

    A JPEG that is decoded at a fraction of its size takes little memory, but its whole file is read. With more pixels
    than ``SMALL_BYTES`` it is therefore never counted as a small image.

    Args:
        header: The header of the image.
        contract: The pixels that the model takes.

    Returns:
        An upper bound in bytes.
    """
    header = scale_header(header, contract)
    width, height = header.decoded_size
    pixels = width * height
    mode, pixel_bytes = ("RGB", 4) if contract.channels == 3 else ("L", 1)
    total = BASE_BYTES + header.decoder_bytes + header.row_bytes + SIDE_BYTES * (width + height)
    if header.direct != mode:
        total += pixels * pixel_bytes + STRIP_BYTES * min(pixels, max(STRIP_PIXELS, width))
    if header.components and pixels <= COPIED_PIXELS:
        total += 3 * pixels  # an array first, then a picture
    total += pixel_bytes * _count_resize_pixels((width, height), contract)
    if not contract.resize.antialias:
        total += SAMPLED_BYTES * (width + height + contract.width + contract.height)
    if contract.channel_order == "BGR":
        total += 3 * contract.width * contract.height
    return max(total, min(header.width * header.height, SMALL_BYTES + 1))


def _count_resize_pixels(size: tuple[int, int], contract: PixelContract) -> int:
    """Compute the number of pixels of the pictures that a resize makes in addition to the decoded one.

    Args:
        size: The decoded picture, before the orientation is applied.
        contract: The pixels that the model takes.
    """
    crop_pixels = contract.width * contract.height
    short, long = min(size), max(size)
    if contract.resize.mode == "crop" and contract.resize.crop_ratio == 1:
        between = max(contract.width, contract.height) * (short + 2) + long * min(contract.height, short)
        return between + 2 * crop_pixels
    # The orientation of most formats is known only when it is decoded.
    return max(_count_steps(upright, contract) for upright in ((short, long), (long, short))) + 2 * crop_pixels


def _count_steps(size: tuple[int, int], contract: PixelContract) -> int:
    """Compute the number of pixels of a resize and of what comes before and after it.

    Args:
        size: The upright picture.
        contract: The pixels that the model takes.
    """
    resize = contract.resize
    if resize.mode == "none":
        return 0
    part, resized = size, resize.find_target(size, contract.size)
    copied = math.prod(resized) if resize.mode == "letterbox" else 0  # into the box
    if resize.mode == "crop":
        part, resized = plan_resize(size, contract.size, resize.crop_ratio)
        copied = math.prod(part)
    return copied + max(part[0] * resized[1], resized[0] * part[1]) + math.prod(resized)


class _ExifLog:
    """Logs that the orientation of an image may be wrong, at most once a minute."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def note(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + EXIF_PAUSE_S
            log.warning(
                "the EXIF block of an image is damaged: the image is treated as upright; logged at most once a minute"
            )


_exif_log = _ExifLog()


def decode_requested(header: Header, contract: PixelContract) -> Pixels:
    """Decode an image of a request, and log a warning if its EXIF block is damaged.

    Args:
        header: The header of the image.
        contract: The pixels that the model takes.

    Returns:
        Pixels, uint8 (H, W, C).

    Raises:
        ImageError: The image cannot be decoded.
    """
    if header.exif_damaged:
        _exif_log.note()
    return decode_by_header(header, contract)
