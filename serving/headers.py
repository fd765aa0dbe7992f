"""What an image announces before anything of it is decoded: its size, the memory and the work that decoding it takes.

Nothing here depends on the number of pixels. The bytes are walked segment by segment or chunk by chunk, of which an
image may have so many; whatever has no effect on pixels (profiles, texts, thumbnails, later frames) is left out of what
the decoders get, so that they cannot be made to parse it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, TypeAlias

import simplejpeg

from serving.errors import ImageTooComplex, ImageTooManyPixels, ImageUnreadable
from serving.limits import Limits

MAX_WEBP_PIECES = 4_000  # chunks of a WebP: one for each frame of an animation
MAX_PIECES = 20_000  # chunks of a PNG. libpng writes 8 KiB a chunk: 1,300 in an image of 10 MiB
MAX_SEGMENTS = 512  # of a JPEG before its first scan. A colour profile has at most 255
MAX_FILL_BYTES = 65_536  # between the segments of a JPEG: Pillow skips them one by one
MAX_SCAN_PIXELS = 1_000_000_000  # 20 scans of 50 million pixels; progressive JPEGs have about 10
MAX_RLE_PIXELS = 1_000_000  # Pillow decodes run lengths in Python, one by one
MAX_TEXT_BYTES = 4 * 2**20  # of a PNG's text once it is unpacked: the orientation is looked for in so much
MAX_PROFILE_DIGITS = 2**18  # of an EXIF block as text: a JPEG's, where it comes from, has at most 2 x 65,533
MAX_EXIF_BYTES = 65_536  # of a block that is looked at where it may be nothing but zeros
MAX_SIDE = 65_535  # JPEG's own; a row is decoded, composited and resized as a whole
MAX_WEBP_PIXELS = 2**24  # Pillow copies a WebP while it holds the interpreter's lock
GLANCE_BYTES = 4096  # of a JPEG whose segments and scans need not be counted: even a scan every 10 bytes ...
GLANCE_WORK = MAX_SCAN_PIXELS // 2  # ... is a 20th of the work that is allowed, pixels x bytes
ARITHMETIC_SCANS = 20  # Huffman-coded scans in the time of one that is coded arithmetically

Buffer: TypeAlias = bytes | memoryview

JPEG, PNG, BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"
_MARKER = re.compile(rb"(?s:(?:[^\xff]++|\xff++\x00)*+\xff++([\x01-\xfe]))")
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
ORIENTED = (b"Exif\0\0", b"tiff:Orientation")  # what stands before a JPEG's orientation, in EXIF and in XMP
_COMPONENTS = {"YCbCr": 3, "Gray": 1}  # of a JPEG, by simplejpeg's names for its colours
_MODES = {3: "RGB", 1: "L"}
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION = 0x0112
_INTEGER_BYTES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}  # TIFF's types of whole numbers, and how long they are

_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_SCAN = 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_PROGRESSIVE, _ARITHMETIC = {0xC2, 0xC6, 0xCA, 0xCE}, {*range(0xC9, 0xD0)}
_NO_PIXELS = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP1 to APP13, APP15, COM. APP0 and APP14 say what the colours are
_PILLOWS_CMYK = [[luma, (1, 1), (1, 1), (1, 1)] for luma in ((2, 1), (1, 2), (2, 2))]  # factors of subsampled CMYK

_WEBP_MORE = 0x1C  # flags of alpha, EXIF and XMP
_WEBP_CODES, _WEBP_CODES_BITS = 65_536, 20  # sets of Huffman codes, at most, and the bits that the shortest takes

_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_EXIF, _PNG_PROFILE, _PNG_XMP = b"exif\0", b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"
_PNG_BYTES = {(8, 2): 4, (16, 2): 4, (8, 4): 4, (16, 4): 4, (8, 6): 4, (16, 6): 4, (16, 0): 2}  # else 1


class Header(NamedTuple):
    """What an image announces.

    Attributes:
        format: by Pillow's name.
        width: in pixels, before the orientation is applied.
        height: in pixels, likewise.
        orientation: 1 to 8 of a JPEG; 1 of other formats, see ``oriented``.
        image: all of it.
        kept: where the parts are that the decoder is given; empty: all of it.
        decoder_bytes: memory that the decoder takes for the picture and for its own use.
        row_bytes: memory of one row of its buffers.
        components: of a JPEG that TurboJPEG decodes: 1 grey, 3 colour, 4 CMYK or YCCK; 0: of any other image.
        direct: the mode, RGB or L, that the decoder gives and that may be all there is to do; "": another, or alpha to
            composite, or an orientation to apply.
        oriented: of a PNG, the chunks that may hold its orientation: the name, and where the content starts and ends.
        exif_damaged: whether an orientation may have been lost with a damaged EXIF block.
    """

    format: str
    width: int
    height: int
    orientation: int
    image: bytes
    kept: tuple[tuple[int, int], ...]
    decoder_bytes: int
    row_bytes: int = 0
    components: int = 0
    direct: str = ""
    oriented: tuple[tuple[bytes, int, int], ...] = ()
    exif_damaged: bool = False

    def cut(self) -> bytes:
        """What the decoder is given."""
        whole = memoryview(self.image)
        return b"".join(whole[start:end] for start, end in self.kept) if self.kept else self.image


def read_header(image: bytes, limits: Limits) -> Header | None:
    """Read what an image announces.

    Args:
        image: encoded.
        limits: how many pixels it may have.

    Returns:
        None where the first bytes are those of no format that is decoded.

    Raises:
        ImageTooManyPixels: more than ``max_image_pixels``.
        ImageTooComplex: decoding takes more work than an image of this size explains.
        ImageUnreadable: the header is truncated or damaged.
    """
    try:
        if image.startswith(JPEG):
            return _glance_at_jpeg(image, limits) or _read_jpeg(image, limits)
        if image.startswith(PNG):
            return _read_png(image, limits)
        if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
            return _read_webp(image, limits)
        if image.startswith(BMP):
            return _read_bmp(image, limits)
    except (struct.error, IndexError) as error:
        raise ImageUnreadable("image is truncated or damaged: it ends in its header", cause=error) from error
    return None


def find_orientation(exif: Buffer, xmp: bytes = b"") -> int:
    """The orientation in an EXIF block, else in XMP; 1 where there is none, or damaged.

    Args:
        exif: from its ``Exif`` or from its TIFF header on; may be empty.
        xmp: as text; may be empty.
    """
    found = None
    tiff = _cut_exif(exif)
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
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
    """Whether an EXIF block is damaged where it would tell the orientation.

    Args:
        exif: from its ``Exif`` or from its TIFF header on; may be empty.
    """
    tiff = _cut_exif(exif)
    if not bytes(tiff[:MAX_EXIF_BYTES]).strip(b"\0"):
        return False
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if not order or len(tiff) < 8:
        return True
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return True
    (count,) = struct.unpack_from(order + "H", tiff, start)
    return bool(start + 2 + 12 * count > len(tiff))


def _cut_exif(exif: Buffer) -> memoryview:
    """An EXIF block from its TIFF header on, without a copy: a PNG may hold one as large as itself."""
    whole = memoryview(exif)
    return whole[6:] if whole[:6] == _EXIF else whole


def check_pixel_count(size: tuple[int, ...], limits: Limits) -> None:
    """Refuse an image by what its header announces.

    Args:
        size: width and height.
        limits: ``max_image_pixels``.

    Raises:
        ImageTooManyPixels: it has more.
    """
    width, height = size
    if max(size) > MAX_SIDE and width * height <= limits.max_image_pixels:
        raise ImageTooManyPixels(
            f"image is {width}x{height} pixels, the limit is {MAX_SIDE} a side: send a part of it",
            pixels=width * height,
            limit_pixels=limits.max_image_pixels,
        )
    if width * height > limits.max_image_pixels:
        raise ImageTooManyPixels(
            f"image is {width}x{height} = {width * height} pixels, the limit is {limits.max_image_pixels}: "
            "send a smaller one",
            pixels=width * height,
            limit_pixels=limits.max_image_pixels,
        )


def _glance_at_jpeg(image: bytes, limits: Limits) -> Header | None:
    """The header of a thumbnail that could hold nothing but scans and yet be decoded in no time; None of any other."""
    if len(image) > GLANCE_BYTES or ORIENTED[0] in image or ORIENTED[1] in image:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image, strict=False)
    except (ValueError, KeyError):  # KeyError: sampling factors without a name
        return None
    padded = (width + 31) * (height + 31)
    components = _COMPONENTS.get(colours, 0)
    if not components or padded * len(image) > GLANCE_WORK:
        return None
    check_pixel_count((width, height), limits)
    return Header("JPEG", width, height, 1, image, (), 12 * padded, 0, components, _MODES[components])


def _read_jpeg(image: bytes, limits: Limits) -> Header:
    """Walk the segments up to the first scan, and count the scans."""
    kept, exif, xmp, frame, scan = [(0, 2)], b"", b"", None, 0
    for marker, start, end in _walk_jpeg(image):
        scan = start
        if marker not in _NO_PIXELS:
            kept.append((start - 4, len(image) if marker == _SCAN else end))
        if marker in _FRAMES and frame is None:
            frame = marker, image[start:end]
        elif marker == 0xE1 and not exif and image.startswith(_EXIF, start):
            exif = image[start:end]
        elif marker == 0xE1 and image.startswith(_XMP, start):
            xmp = image[start:end]
    if frame is None:
        raise ImageUnreadable("image is truncated or damaged: a JPEG without a frame", cause="no frame")
    check_pixel_count(struct.unpack_from(">xHH", frame[1])[::-1], limits)
    header = _describe_jpeg(image, kept, frame, scan, find_orientation(exif, xmp))
    return header._replace(exif_damaged=is_exif_damaged(exif))


def _walk_jpeg(image: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment's marker, and where what it holds starts and ends; the last is the first scan's header."""
    position, fill_bytes = 2, 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.match(image, position)
        if found is None:
            raise ImageUnreadable("image is truncated or damaged: a JPEG without a scan", cause="no scan")
        fill_bytes += found.end() - position - 2
        if fill_bytes > MAX_FILL_BYTES:
            raise ImageTooComplex(
                f"a JPEG with more than {MAX_FILL_BYTES} bytes between its segments: save it again as a baseline JPEG",
                limit_bytes=MAX_FILL_BYTES,
            )
        marker, start = found[1][0], found.end()
        if marker in _ALONE:
            position = start
            continue
        (length,) = struct.unpack_from(">H", image, start)
        position = start + max(length, 2)
        yield marker, start + 2, position
        if marker == _SCAN:
            return
    raise ImageTooComplex(
        f"a JPEG of more than {MAX_SEGMENTS} segments before its pixels: save it again without its metadata",
        limit_segments=MAX_SEGMENTS,
    )


def is_progressive(image: bytes) -> bool:
    """Whether the frame of a JPEG, whose header was read, is a progressive one."""
    frames = (marker for marker, _, _ in _walk_jpeg(image) if marker in _FRAMES)
    return next(frames, 0) in _PROGRESSIVE


def _describe_jpeg(
    image: bytes, kept: list[tuple[int, int]], frame: tuple[int, bytes], scan: int, orientation: int
) -> Header:
    """What the frame and the scans of a JPEG announce.

    Args:
        image: all of it.
        kept: where the parts are that the decoder needs.
        frame: its marker and what it holds.
        scan: where the first scan's header starts.
        orientation: 1 to 8.
    """
    marker, content = frame
    _, height, width, count = struct.unpack_from(">BHHB", content)
    factors = [divmod(content[7 + 3 * number], 16) for number in range(count)]
    most_x, most_y = max((x for x, _ in factors), default=0), max((y for _, y in factors), default=0)
    if not (width and height and most_x and most_y):
        raise ImageUnreadable("image is truncated or damaged: a JPEG of no pixels", cause="no pixels")
    padded = -(-width // (8 * most_x)) * 8 * most_x * -(-height // (8 * most_y)) * 8 * most_y
    decoder_bytes = width * height * (1 if count == 1 else 4)
    if marker in _PROGRESSIVE or image[scan] < count:  # else the decoder stops after one scan
        scans = image.count(b"\xff\xda", scan) + 1
        decoder_bytes += 2 * sum(padded * x * y // (most_x * most_y) for x, y in factors)  # all coefficients at once
    else:
        scans = 1
    work = padded * scans * (ARITHMETIC_SCANS if marker in _ARITHMETIC else 1)
    if work > MAX_SCAN_PIXELS:
        raise ImageTooComplex(
            f"a JPEG of {width}x{height} pixels in {scans} scans{' coded arithmetically' * (marker in _ARITHMETIC)}, "
            f"the limit is {MAX_SCAN_PIXELS * scans // work} scans: save it again as a baseline JPEG",
            scans=scans,
            limit_scans=MAX_SCAN_PIXELS * scans // work,
        )
    components = 0 if factors in _PILLOWS_CMYK else count
    if components:
        _check_turbojpeg(image, (height, width), factors)
    direct = _MODES.get(components, "") if orientation == 1 else ""
    decoder_bytes += len(image)  # the parts that are kept, joined; or a copy with a mended header
    return Header(
        *("JPEG", width, height, orientation, image, tuple(kept), decoder_bytes, 64 * width * count, components, direct)
    )


def _check_turbojpeg(image: bytes, size: tuple[int, int], factors: list[tuple[int, int]]) -> None:
    """Check that TurboJPEG reads the same header.

    Pillow decodes sampling factors that TurboJPEG refuses, but does not tell whether libjpeg-turbo warned of damage
    meanwhile: an image of such factors cannot be known to be whole, and most are damaged, as encoders do not write
    them. Those of CMYK that Pillow itself writes are decoded all the same; no single flipped bit leads to them.

    Args:
        image: all of it.
        size: (height, width) that its frame announces.
        factors: (horizontal, vertical) of every component.

    Raises:
        ImageUnreadable: TurboJPEG reads another size, or nothing.
    """
    if len(factors) not in (1, 3, 4):
        raise ImageUnreadable(
            f"image is truncated or damaged: a JPEG of {len(factors)} components, 1, 3 or 4 are decoded",
            cause="components",
        )
    try:
        found = simplejpeg.decode_jpeg_header(image, strict=False)[:2]
    except KeyError:  # sampling factors without a name
        return
    except ValueError as error:
        named = ", ".join(f"{x}x{y}" for x, y in factors)
        why = f"a JPEG of sampling factors {named}, which are not decoded" if "subsampling" in str(error) else error
        raise ImageUnreadable(
            f"image is truncated or damaged: {why}; if other programs show it whole, save it again as a baseline JPEG",
            cause=error,
        ) from error
    if found != size:
        raise ImageUnreadable("image is truncated or damaged: a JPEG of two sizes", cause="two sizes")


def _read_png(image: bytes, limits: Limits) -> Header:
    """Walk the chunks; keep those that decide pixels, and find those of the orientation: of equals the last counts."""
    (name, start, end), *_ = islice(_walk_png(image), 1)
    if name != b"IHDR":
        raise ImageUnreadable("image is truncated or damaged: a PNG without its header", cause="no header")
    width, height, depth, colour_type = struct.unpack_from(">IIBB", image, start)
    check_pixel_count((width, height), limits)
    oriented: dict[bytes, tuple[bytes, int, int]] = {}
    kept: list[tuple[int, int]] = []
    whole = memoryview(image)
    data = dropped = transparent = False
    for name, start, end in _walk_png(image):
        if name in _PNG_PIXELS:
            kept.append((start - 8, end + 4))
            data = data or name == b"IDAT"
            transparent = transparent or name == b"tRNS"
            continue
        dropped = True
        if not data and zlib.crc32(whole[start - 4 : end]) != struct.unpack_from(">I", image, end)[0]:
            raise ImageUnreadable(
                f"image is truncated or damaged: the checksum of the chunk at byte {start - 8}", cause="checksum"
            )
        if name == b"eXIf":
            oriented[_PNG_EXIF] = name, start, end
        elif name == b"tEXt" and image.startswith(_PNG_EXIF, start):  # as Pillow reads it, too
            oriented[_PNG_EXIF] = name, start + len(_PNG_EXIF), end
        elif name in _PNG_TEXTS and image.startswith((_PNG_PROFILE, _PNG_XMP), start):
            oriented[image[start : start + 3]] = name, start, end  # "Raw" or "XML"
    decoder_bytes = sum(4 * (end - start) + 2 * MAX_TEXT_BYTES for _, start, end in oriented.values())
    bytes_per_pixel = _PNG_BYTES.get((depth, colour_type), 1)
    decoder_bytes += width * height * bytes_per_pixel + (len(image) if dropped else 0)
    row_bytes = -(-width * depth * {2: 3, 4: 2, 6: 4}.get(colour_type, 1) // 8)
    direct = "" if transparent or oriented else {0: "L" if depth in (2, 4, 8) else "", 2: "RGB"}.get(colour_type, "")
    parts = ((0, 8), *kept) if dropped else ()
    found = tuple(oriented.values())
    _, start, end = oriented.get(_PNG_EXIF, (b"", 0, 0))
    damaged = is_exif_damaged(whole[start:end])
    return Header("PNG", width, height, 1, image, parts, decoder_bytes, 3 * row_bytes, 0, direct, found, damaged)


def find_png_orientation(header: Header) -> int:
    """The orientation of a PNG: in its EXIF chunk, else in an EXIF block as text, else in XMP; 1 where there is none.

    Args:
        header: What it announces.
    """
    profile, xmp = b"", b""
    exif: Buffer = b""
    for name, start, end in header.oriented:
        if header.image.startswith(_PNG_XMP, start):
            xmp = _read_text(name, header.image[start:end])
        elif header.image.startswith(_PNG_PROFILE, start):
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
    """The text of a PNG's chunk, unpacked as far as it is looked at; empty where it is damaged.

    Args:
        name: ``tEXt``, ``zTXt`` or ``iTXt``.
        content: From the keyword on.
    """
    _, _, text = content.partition(b"\0")
    packed = name == b"zTXt" or (name == b"iTXt" and text[:1] != b"\0")
    if name == b"iTXt":  # the method, the language and the keyword in it
        text = b"\0".join(text[2:].split(b"\0", 2)[2:])
    elif name == b"zTXt":
        text = text[1:]
    try:
        return zlib.decompressobj().decompress(text, MAX_TEXT_BYTES) if packed else text
    except zlib.error:
        return b""


def _walk_png(image: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's name, and where what it holds starts and ends."""
    position = len(PNG)
    data = False
    for _ in range(MAX_PIECES):
        if data and position + 8 > len(image):
            return  # no IEND: Pillow minds only where pixels are missing
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
    raise ImageTooComplex(f"a PNG of more than {MAX_PIECES} chunks: save it again as one", limit_chunks=MAX_PIECES)


def check_png(image: bytes) -> None:
    """Check what Pillow leaves unread: that a PNG is there to its end, and the checksum of every chunk.

    Args:
        image: All of it.

    Raises:
        ImageUnreadable: It ends before its last chunk, or a chunk is damaged.
    """
    whole = memoryview(image)
    ended = False
    for name, start, end in _walk_png(image):
        if end + 4 > len(image):
            break
        ended = name == b"IEND"
        if zlib.crc32(whole[start - 4 : end]) != struct.unpack_from(">I", image, end)[0]:
            raise ImageUnreadable(
                f"image is truncated or damaged: the checksum of the chunk at byte {start - 8}", cause="checksum"
            )
    if not ended:
        raise ImageUnreadable("image is truncated or damaged: a PNG without its end", cause="truncated")


def _read_webp(image: bytes, limits: Limits) -> Header:
    """The canvas, of the first chunk, and how many there are."""
    kind, direct = image[12:16], "RGB"
    if kind == b"VP8X":
        width = int.from_bytes(image[24:27], "little") + 1
        height = int.from_bytes(image[27:30], "little") + 1
        direct = "" if image[20] & _WEBP_MORE else "RGB"
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", image, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        direct = "" if bits >> 28 & 1 else "RGB"
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", image, 26))
    check_pixel_count((width, height), limits)
    if width * height > MAX_WEBP_PIXELS:
        raise ImageTooManyPixels(
            f"a WebP of {width}x{height} = {width * height} pixels, the limit is {MAX_WEBP_PIXELS}: "
            "send a smaller one, or a JPEG",
            pixels=width * height,
            limit_pixels=MAX_WEBP_PIXELS,
        )
    position, kinds, exif = 12, Counter[bytes](), b""
    while position + 8 <= len(image):
        (length,) = struct.unpack_from("<I", image, position + 4)
        kinds[image[position : position + 4]] += 1
        if image.startswith(b"EXIF", position):
            exif = image[position + 8 : position + 8 + length]
        position += 8 + length + (length & 1)
        if kinds.total() > MAX_WEBP_PIECES:
            raise ImageTooComplex(
                f"a WebP of more than {MAX_WEBP_PIECES} chunks: send its first frame alone",
                limit_chunks=MAX_WEBP_PIECES,
            )
    # Pillow's decoder holds two canvases, its copy of the frame and the picture, and twice the file.
    decoder_bytes = 17 * width * height + 3 * len(image)
    if kinds.keys() & {b"VP8L", b"ALPH", b"ANMF"}:  # lossless: the frame, and its Huffman codes, by blocks of pixels
        codes = min(_WEBP_CODES, -(-width // 4) * -(-height // 4), 8 * len(image) // _WEBP_CODES_BITS)
        decoder_bytes += 4 * width * height + 6144 * codes + min(4096 * codes, 256 * len(image))
    damaged = is_exif_damaged(exif)
    return Header("WEBP", width, height, 1, image, (), decoder_bytes, 64 * width, 0, direct, (), damaged)


def _read_bmp(image: bytes, limits: Limits) -> Header:
    """The fields of any of the six headers that Pillow knows."""
    (size,) = struct.unpack_from("<I", image, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", image, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<IIHHI", image, 18)
        if image[25] == 0xFF:  # rows from the top
            height = 2**32 - height
    check_pixel_count((width, height), limits)
    pixels, bytes_per_pixel = width * height, 1 if bits <= 8 else 4
    if compression in (1, 2):
        if pixels > MAX_RLE_PIXELS:
            raise ImageTooComplex(
                f"a BMP of {width}x{height} pixels in run lengths, the limit is {MAX_RLE_PIXELS}: save it again as PNG",
                pixels=pixels,
                limit_pixels=MAX_RLE_PIXELS,
            )
        bytes_per_pixel += 4  # the decoder's own copies
    direct = "RGB" if bits in (16, 24) else ""
    return Header("BMP", width, height, 1, image, (), pixels * bytes_per_pixel, 2 * (width * bits // 8), 0, direct)
