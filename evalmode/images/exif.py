"""The orientation of an image, from its EXIF block or its XMP."""

from __future__ import annotations

import re
import struct
from typing import Any, TypeAlias

from PIL import Image

Buffer: TypeAlias = bytes | memoryview

EXIF = b"Exif\0\0"  # the prefix of an EXIF block
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_INTEGER_BYTES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}  # TIFF's integer types, and their sizes
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_MAX_ZERO_BYTES = 65_536  # a block that begins with so many zeros is empty


def find_orientation(exif: Buffer, xmp: bytes = b"") -> int:
    """Find the orientation of an image in its EXIF block, else in its XMP.

    Args:
        exif: The EXIF block, with or without its ``Exif`` prefix; may be empty.
        xmp: The XMP packet; may be empty.

    Returns:
        The orientation, 1 to 8 in valid files; 1 if there is none, or the block is damaged.
    """
    found = None
    tiff = _cut_prefix(exif)
    order = _BYTE_ORDERS.get(bytes(tiff[:2]))
    if order and len(tiff) >= 10:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start) if start + 2 <= len(tiff) else (0,)
        whole = min(count, (len(tiff) - start - 2) // 12)
        entries = struct.iter_unpack(order + "HHI4s", tiff[start + 2 : start + 2 + 12 * max(whole, 0)])
        for tag, kind, values, value in entries:
            if found is None and tag == _ORIENTATION and values == 1 and kind in _INTEGER_BYTES:
                found = int.from_bytes(value[: _INTEGER_BYTES[kind]], "little" if order == "<" else "big")
    if found is None and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return 1 if found is None else found


def is_exif_damaged(exif: Buffer) -> bool:
    """Return whether an EXIF block is damaged so that its orientation may be lost.

    Args:
        exif: The EXIF block, with or without its ``Exif`` prefix; may be empty.
    """
    tiff = _cut_prefix(exif)
    if not bytes(tiff[:_MAX_ZERO_BYTES]).strip(b"\0"):
        return False
    order = _BYTE_ORDERS.get(bytes(tiff[:2]))
    if not order or len(tiff) < 8:
        return True
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return True
    (count,) = struct.unpack_from(order + "H", tiff, start)
    return bool(start + 2 + 12 * count > len(tiff))


def _cut_prefix(exif: Buffer) -> memoryview:
    """Return an EXIF block from its TIFF header on, without a copy: that of a PNG may be as large as the image."""
    block = memoryview(exif)
    return block[len(EXIF) :] if block[: len(EXIF)] == EXIF else block


def read_pillow_orientation(opened: Image.Image) -> int:
    """Find the orientation in the blocks that Pillow has found in an image.

    Pillow's own reader raises on damaged blocks, so it is not used.

    Args:
        opened: The image.
    """
    info: dict[Any, Any] = opened.info
    return find_orientation(info.get("exif") or b"", info.get("xmp") or b"")
