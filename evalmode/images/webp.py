"""WebP: the header, lossy, lossless or extended."""

from __future__ import annotations

import struct
from collections import Counter

from PIL import WebPImagePlugin

from evalmode.errors import ImageTooComplex, ImageTooManyPixels
from evalmode.images.exif import is_exif_damaged, read_pillow_orientation
from evalmode.images.headers import Codec, Header, check_pixel_count
from evalmode.limits import Limits

MAX_CHUNKS = 4_000  # one for each frame of an animation
MAX_PIXELS = 2**24  # Pillow copies a WebP while it holds the interpreter's lock

_NOT_PLAIN = 0x1C  # flags of alpha, EXIF and XMP
_MAX_CODES, _MIN_CODES_BITS = 65_536, 20  # sets of Huffman codes, and the size of the shortest set


def _read_header(image: bytes, limits: Limits) -> Header:
    """Read the canvas from the first chunk, and count the chunks."""
    width, height, direct = _read_canvas(image)
    check_pixel_count((width, height), limits)
    if width * height > MAX_PIXELS:
        raise ImageTooManyPixels(
            f"a WebP of {width}x{height} = {width * height} pixels, the limit is {MAX_PIXELS}: "
            "send a smaller one, or a JPEG",
            pixels=width * height,
            limit_pixels=MAX_PIXELS,
        )
    position, kinds, exif = 12, Counter[bytes](), b""
    while position + 8 <= len(image):
        (length,) = struct.unpack_from("<I", image, position + 4)
        kinds[image[position : position + 4]] += 1
        if image.startswith(b"EXIF", position):
            exif = image[position + 8 : position + 8 + length]
        position += 8 + length + (length & 1)
        if kinds.total() > MAX_CHUNKS:
            raise ImageTooComplex(
                f"a WebP of more than {MAX_CHUNKS} chunks: send its first frame alone",
                limit_chunks=MAX_CHUNKS,
            )
    # Pillow's decoder holds two canvases, its copy of the frame, the picture, and the file twice.
    decoder_bytes = 17 * width * height + 3 * len(image)
    if kinds.keys() & {b"VP8L", b"ALPH", b"ANMF"}:  # lossless: the frame, and its Huffman codes, by blocks of pixels
        codes = min(_MAX_CODES, -(-width // 4) * -(-height // 4), 8 * len(image) // _MIN_CODES_BITS)
        decoder_bytes += 4 * width * height + 6144 * codes + min(4096 * codes, 256 * len(image))
    damaged = is_exif_damaged(exif)
    return Header("WEBP", width, height, 1, image, (), decoder_bytes, 64 * width, 0, direct, (), damaged)


def _read_canvas(image: bytes) -> tuple[int, int, str]:
    """Return width, height, and the mode that is decoded without a conversion, or ""."""
    kind = image[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(image[24:27], "little") + 1
        height = int.from_bytes(image[27:30], "little") + 1
        return width, height, "" if image[20] & _NOT_PLAIN else "RGB"
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", image, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "" if bits >> 28 & 1 else "RGB"
    width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", image, 26))
    return width, height, "RGB"


CODEC = Codec(_read_header, WebPImagePlugin.WebPImageFile, lambda header, opened: read_pillow_orientation(opened))
