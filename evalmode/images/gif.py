"""GIF: the header, and the first frame; everything else is removed."""

from __future__ import annotations

import struct

from PIL import GifImagePlugin

from evalmode.errors import ImageTooComplex, ImageUnreadable
from evalmode.images.headers import Codec, Header, check_pixel_count
from evalmode.limits import Limits

MAX_BLOCKS = 20_000  # of extensions before the first frame: 5 MB of comments

_SCREEN_BYTES = 13
_EXTENSION, _FRAME, _CONTROL = 0x21, 0x2C, 0xF9


def _read_header(image: bytes, limits: Limits) -> Header:
    """Walk the blocks up to the first frame. Pillow enlarges the picture if the frame is larger than the screen."""
    control, frame = _find_frame(image)
    screen = struct.unpack_from("<HH", image, 6)
    left, top, width, height, _ = struct.unpack_from("<HHHHB", image, frame + 1)
    size = max(screen[0], left + width), max(screen[1], top + height)
    if not (width and height):
        raise ImageUnreadable("image is truncated or damaged: a GIF of no pixels", cause="no pixels")
    check_pixel_count(size, limits)
    kept = ((0, _find_screen_end(image)), control, (frame, len(image)))
    decoder_bytes = size[0] * size[1] + width * height + len(image)
    return Header("GIF", *size, 1, image, kept, decoder_bytes)


def _find_screen_end(image: bytes) -> int:
    """Return the end of the screen descriptor and its palette."""
    flags = image[_SCREEN_BYTES - 3]
    return _SCREEN_BYTES + (3 << (flags & 7) + 1 if flags & 0x80 else 0)


def _find_frame(image: bytes) -> tuple[tuple[int, int], int]:
    """Return start and end of the last graphic control extension before the first frame, and the frame's start."""
    position, control, blocks = _find_screen_end(image), (0, 0), 0
    while image[position] == _EXTENSION:
        start, label = position, image[position + 1]
        position += 2
        while length := image[position]:
            position += 1 + length
            blocks += 1
        position += 1
        blocks += 1
        if blocks > MAX_BLOCKS:
            raise ImageTooComplex(
                f"a GIF of more than {MAX_BLOCKS} blocks before its first frame: save it again without comments",
                limit_blocks=MAX_BLOCKS,
            )
        if label == _CONTROL:
            control = start, position
    if image[position] != _FRAME:
        raise ImageUnreadable(f"image is truncated or damaged: no frame at byte {position} of a GIF", cause="no frame")
    return control, position


def _check(image: bytes) -> None:
    """Check what Pillow does not: that the data of the first frame have an end.

    Raises:
        ImageUnreadable: They have none.
    """
    _, frame = _find_frame(image)
    flags = image[frame + 9]
    position = frame + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while position < len(image):
        if not image[position]:
            return
        position += 1 + image[position]
    raise ImageUnreadable("image is truncated or damaged: it ends in its first frame", cause="truncated")


CODEC = Codec(_read_header, GifImagePlugin.GifImageFile, lambda header, opened: 1, _check)
