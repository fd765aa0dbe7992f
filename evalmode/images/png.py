"""PNG: the header, the chunks that affect pixels, the orientation, and the checksums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import islice

from PIL import PngImagePlugin

from evalmode.errors import ImageTooComplex, ImageUnreadable
from evalmode.images.exif import Buffer, find_orientation, is_exif_damaged
from evalmode.images.headers import Codec, Header, check_pixel_count
from evalmode.limits import Limits

MAX_CHUNKS = 20_000  # libpng writes chunks of 8 KiB: 1,300 in an image of 10 MiB
MAX_TEXT_BYTES = 4 * 2**20  # of a decompressed text that are searched for the orientation
MAX_PROFILE_DIGITS = 2**18  # of an EXIF block as text; that of a JPEG has at most 2 x 65,533

_SIGNATURE_BYTES = 8
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_EXIF, _PROFILE, _XMP = b"exif\0", b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"
# Bytes of a decoded pixel by bit depth and colour type; 1 for all others.
_PIXEL_BYTES = {(8, 2): 4, (16, 2): 4, (8, 4): 4, (16, 4): 4, (8, 6): 4, (16, 6): 4, (16, 0): 2}


def _read_header(image: bytes, limits: Limits) -> Header:
    """Walk the chunks: keep those that affect pixels, and find the orientation; the last chunk of a kind counts."""
    (name, start, end), *_ = islice(_walk(image), 1)
    if name != b"IHDR":
        raise ImageUnreadable("image is truncated or damaged: a PNG without its header", cause="no header")
    width, height, depth, colour_type = struct.unpack_from(">IIBB", image, start)
    check_pixel_count((width, height), limits)
    oriented: dict[bytes, tuple[bytes, int, int]] = {}
    kept: list[tuple[int, int]] = []
    whole = memoryview(image)
    data = dropped = transparent = False
    for name, start, end in _walk(image):
        if name in _PIXEL_CHUNKS:
            kept.append((start - 8, end + 4))
            data = data or name == b"IDAT"
            transparent = transparent or name == b"tRNS"
            continue
        dropped = True
        if not data:
            _check_checksum(image, whole, start, end)
        if name == b"eXIf":
            oriented[_EXIF] = name, start, end
        elif name == b"tEXt" and image.startswith(_EXIF, start):  # Pillow reads it, too
            oriented[_EXIF] = name, start + len(_EXIF), end
        elif name in _TEXT_CHUNKS and image.startswith((_PROFILE, _XMP), start):
            oriented[image[start : start + 3]] = name, start, end  # "Raw" or "XML"
    decoder_bytes = sum(4 * (end - start) + 2 * MAX_TEXT_BYTES for _, start, end in oriented.values())
    bytes_per_pixel = _PIXEL_BYTES.get((depth, colour_type), 1)
    decoder_bytes += width * height * bytes_per_pixel + (len(image) if dropped else 0)
    row_bytes = -(-width * depth * {2: 3, 4: 2, 6: 4}.get(colour_type, 1) // 8)
    direct = "" if transparent or oriented else {0: "L" if depth in (2, 4, 8) else "", 2: "RGB"}.get(colour_type, "")
    parts = ((0, _SIGNATURE_BYTES), *kept) if dropped else ()
    found = tuple(oriented.values())
    _, start, end = oriented.get(_EXIF, (b"", 0, 0))
    damaged = is_exif_damaged(whole[start:end])
    return Header("PNG", width, height, 1, image, parts, decoder_bytes, 3 * row_bytes, 0, direct, found, damaged)


def _find_orientation(header: Header) -> int:
    """Find the orientation in the EXIF chunk, else in an EXIF block as text, else in XMP; 1 if there is none."""
    profile, xmp = b"", b""
    exif: Buffer = b""
    for name, start, end in header.oriented:
        if header.image.startswith(_XMP, start):
            xmp = _read_text(name, header.image[start:end])
        elif header.image.startswith(_PROFILE, start):
            profile = _read_text(name, header.image[start:end])
        else:
            exif = memoryview(header.image)[start:end]
    if not exif and profile:
        digits = b"".join(profile[: 2 * MAX_PROFILE_DIGITS].split(b"\n")[3:])[:MAX_PROFILE_DIGITS]
        try:
            exif = bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            exif = b""
    return find_orientation(exif, xmp)


def _read_text(name: bytes, content: bytes) -> bytes:
    """Read the text of a chunk, at most ``MAX_TEXT_BYTES`` if it is compressed; empty if it is damaged.

    Args:
        name: ``tEXt``, ``zTXt`` or ``iTXt``.
        content: The content of the chunk, from the keyword on.
    """
    _, _, text = content.partition(b"\0")
    packed = name == b"zTXt" or (name == b"iTXt" and text[:1] != b"\0")
    if name == b"iTXt":  # skip the method, the language and the translated keyword
        text = b"\0".join(text[2:].split(b"\0", 2)[2:])
    elif name == b"zTXt":
        text = text[1:]
    try:
        return zlib.decompressobj().decompress(text, MAX_TEXT_BYTES) if packed else text
    except zlib.error:
        return b""


def _walk(image: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk, and start and end of its content."""
    position = _SIGNATURE_BYTES
    data = False
    for _ in range(MAX_CHUNKS):
        if data and position + 8 > len(image):
            return  # no IEND: Pillow raises only if pixels are missing
        length, name = struct.unpack_from(">I4s", image, position)
        if data and not name.isalnum():
            return  # not a chunk
        data = data or name == b"IDAT"
        if name != b"IDAT" and position + 12 + length > len(image) and name != b"IEND":
            raise ImageUnreadable(
                f"image is truncated or damaged: it ends in the chunk at byte {position}", cause="truncated"
            )
        yield name, position + 8, position + 8 + length
        if name == b"IEND":
            return
        position += 12 + length
    raise ImageTooComplex(f"a PNG of more than {MAX_CHUNKS} chunks: save it again as one", limit_chunks=MAX_CHUNKS)


def _check(image: bytes) -> None:
    """Check what Pillow does not: that a PNG is complete, and the checksum of every chunk.

    Raises:
        ImageUnreadable: The image ends before its last chunk, or a chunk is damaged.
    """
    whole = memoryview(image)
    ended = False
    for name, start, end in _walk(image):
        if end + 4 > len(image):
            break
        ended = name == b"IEND"
        _check_checksum(image, whole, start, end)
    if not ended:
        raise ImageUnreadable("image is truncated or damaged: a PNG without its end", cause="truncated")


def _check_checksum(image: bytes, whole: memoryview, start: int, end: int) -> None:
    """Check the CRC-32 of the chunk whose content is ``image[start:end]``; ``whole`` is a view of the image."""
    if zlib.crc32(whole[start - 4 : end]) != struct.unpack_from(">I", image, end)[0]:
        raise ImageUnreadable(
            f"image is truncated or damaged: the checksum of the chunk at byte {start - 8}", cause="checksum"
        )


CODEC = Codec(_read_header, PngImagePlugin.PngImageFile, lambda header, opened: _find_orientation(header), _check)
