"""TIFF: the header of the first picture. Pillow reads a directory that has only the tags of its pixels."""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

from PIL import Image, TiffImagePlugin

from evalmode.errors import ImageFormatNotAllowed, ImageTooComplex, ImageUnreadable
from evalmode.images.headers import Codec, Header, check_pixel_count
from evalmode.limits import Limits

MAX_ENTRIES = 1_000  # of a directory; cameras and scanners write about 50

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _ORIENTATION = 256, 257, 258, 259, 262, 274
_STRIPS, _SAMPLES, _ROWS, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _KIND = 273, 277, 278, 284, 322, 323, 324, 339
# Sizes, offsets, compression and colours of the pixels.
_PIXEL_TAGS = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, 266, _STRIPS, _SAMPLES, _ROWS, 279, _PLANES, 292, 293, 317, 320),
    *(_TILE_WIDTH, _TILE_HEIGHT, _TILES, 325, 332, 338, _KIND, 347, 529, 530, 531, 532),
}
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946, 34925, 50000, 50001}  # those of whole numbers in libtiff
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # TIFF's types of unsigned integers
_MAX_VALUES = 8  # of a tag that is interpreted: a value for each sample of a pixel


class _Directory(NamedTuple):
    """A directory of a TIFF.

    Attributes:
        order: The byte order: ``<`` or ``>``.
        is_big: Whether offsets have 64 bits (BigTIFF).
        entries: The entry of each tag: type, number of values, and the value or its offset; the first entry counts.
    """

    order: str
    is_big: bool
    entries: dict[int, tuple[int, int, bytes]]

    def read(self, image: bytes, tag: int, default: int) -> tuple[int, ...]:
        """Read the first values of a tag of unsigned integers."""
        kind, count, value = self.entries.get(tag, (0, 0, b""))
        letter = _INTEGERS.get(kind)
        if letter is None or not count:
            return (default,)
        layout = f"{self.order}{min(count, _MAX_VALUES)}{letter}"
        if struct.calcsize(f"{self.order}{letter}") * count <= len(value):
            return struct.unpack_from(layout, value)
        return _unpack(layout, image, int.from_bytes(value, "little" if self.order == "<" else "big"))


def _read_header(image: bytes, limits: Limits) -> Header:
    directory = _read_directory(image)

    def read(tag: int, default: int) -> int:
        return directory.read(image, tag, default)[0]

    width, height = read(_WIDTH, 0), read(_HEIGHT, 0)
    if not (width and height):
        raise ImageUnreadable("image is truncated or damaged: a TIFF of no pixels", cause="no pixels")
    check_pixel_count((width, height), limits)
    bits, samples = max(directory.read(image, _BITS, 1)), read(_SAMPLES, 1)
    _check_kind(bits, max(directory.read(image, _KIND, 1)), read(_COLOURS, 0), read(_COMPRESSION, 1))
    if _TILES in directory.entries:
        part = read(_TILE_WIDTH, 0), read(_TILE_HEIGHT, 0)
        check_pixel_count(part, limits)
    else:
        part = width, min(read(_ROWS, height), height)
        _check_strips(directory, -(-height // max(part[1], 1)) * (samples if read(_PLANES, 1) == 2 else 1))
    part_bytes = part[0] * part[1] * samples * bits // 8
    decoder_bytes = width * height * (4 if samples > 1 else 2) + 2 * part_bytes + 3 * len(image)
    return Header("TIFF", width, height, read(_ORIENTATION, 1), image, (), decoder_bytes)


def _read_directory(image: bytes) -> _Directory:
    """Read the first directory."""
    order = "<" if image[:1] == b"I" else ">"
    is_big = struct.unpack_from(order + "H", image, 2) == (43,)
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), image, 8 if is_big else 4)
    (count,) = _unpack(order + ("Q" if is_big else "H"), image, start)
    if count > MAX_ENTRIES:
        raise ImageTooComplex(
            f"a TIFF of {count} tags, the limit is {MAX_ENTRIES}: save it again without its metadata",
            limit_tags=MAX_ENTRIES,
        )
    layout = order + ("HHQ8s" if is_big else "HHI4s")
    position = start + (8 if is_big else 2)
    entries: dict[int, tuple[int, int, bytes]] = {}
    for _ in range(count):
        tag, kind, values, value = struct.unpack_from(layout, image, position)
        entries.setdefault(tag, (kind, values, value))
        position += struct.calcsize(layout)
    return _Directory(order, is_big, entries)


def _unpack(layout: str, image: bytes, start: int) -> tuple[int, ...]:
    """Unpack numbers at an offset that the file states, of up to 64 bits.

    Raises:
        struct.error: They are beyond the end of the image.
    """
    return struct.unpack_from(layout, image, min(start, len(image)))


def _check_kind(bits: int, kind: int, colours: int, compression: int) -> None:
    """Check that the pixels have a meaning as an image.

    Args:
        bits: Bits of a sample.
        kind: 1 for unsigned integers.
        colours: The colour space: 0 and 1 grey, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr.
        compression: A method in ``_COMPRESSIONS``.

    Raises:
        ImageFormatNotAllowed: They have none, or the compression is not supported.
    """
    for what, value, is_supported in (
        (f"samples of {bits} bits", bits, bits in (1, 2, 4, 8, 16)),
        ("samples that are not unsigned integers", kind, kind == 1),
        (f"colour space {colours}", colours, colours in (0, 1, 2, 3, 5, 6)),
        (f"compression {compression}", compression, compression in _COMPRESSIONS),
    ):
        if not is_supported:
            raise ImageFormatNotAllowed(
                f"a TIFF with {what} is not supported: save it with 8 or 16 bits, as grey, RGB or CMYK, or as PNG",
                format="TIFF",
                value=value,
            )


def _check_strips(directory: _Directory, wanted: int) -> None:
    """Check that there are enough strips: Pillow leaves the pixels of missing ones black."""
    _, count, _ = directory.entries.get(_STRIPS, (0, 0, b""))
    if count < wanted:
        raise ImageUnreadable(
            f"image is truncated or damaged: a TIFF of {count} strips, its rows need {wanted}", cause="strips"
        )


def _open(file: io.BytesIO) -> Image.Image:
    """Open a TIFF, with a directory at its end that has only the tags of its pixels, and no next page.

    Pillow would parse all other tags, and apply the orientation itself.
    """
    image = file.getvalue()
    directory = _read_directory(image)
    entries = sorted((tag, *entry) for tag, entry in directory.entries.items() if tag in _PIXEL_TAGS)
    order, is_big = directory.order, directory.is_big
    start = len(image) + len(image) % 2
    written = struct.pack(order + ("Q" if is_big else "H"), len(entries))
    written += b"".join(struct.pack(order + ("HHQ8s" if is_big else "HHI4s"), *entry) for entry in entries)
    offset = struct.pack(order + ("Q" if is_big else "I"), start)
    head = image[: 8 if is_big else 4] + offset
    whole = b"".join((head, memoryview(image)[len(head) :], bytes(len(image) % 2), written, bytes(len(offset))))
    return TiffImagePlugin.TiffImageFile(io.BytesIO(whole))


CODEC = Codec(_read_header, _open, lambda header, opened: header.orientation)
