"""JPEG: the header, the segments up to the first scan, and the work that the scans take."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import simplejpeg
from PIL import JpegImagePlugin

from evalmode.errors import ImageTooComplex, ImageUnreadable
from evalmode.images.exif import EXIF, find_orientation, is_exif_damaged
from evalmode.images.headers import Codec, Header, check_pixel_count
from evalmode.limits import Limits

MAX_SEGMENTS = 512  # before the first scan. A colour profile has at most 255
MAX_FILL_BYTES = 65_536  # between segments: Pillow skips them one by one
MAX_SCAN_PIXELS = 1_000_000_000  # 20 scans of 50 million pixels; progressive JPEGs have about 10
GLANCE_BYTES = 4096  # the segments and scans of smaller images need not be counted: even a scan every 10 bytes ...
GLANCE_WORK = MAX_SCAN_PIXELS // 2  # ... is a 20th of the work that is allowed, in pixels x bytes
ARITHMETIC_SCANS = 20  # Huffman-coded scans in the time of one arithmetically coded scan

_MARKER = re.compile(rb"(?s:(?:[^\xff]++|\xff++\x00)*+\xff++([\x01-\xfe]))")
_ORIENTED = (EXIF, b"tiff:Orientation")  # the orientation follows these bytes, in EXIF and in XMP
_COMPONENTS = {"YCbCr": 3, "Gray": 1}  # by simplejpeg's name of the colour space
_MODES = {3: "RGB", 1: "L"}
_XMP = b"http://ns.adobe.com/xap/1.0/\0"

_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_SCAN = 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_PROGRESSIVE, _ARITHMETIC = {0xC2, 0xC6, 0xCA, 0xCE}, {*range(0xC9, 0xD0)}
_NO_PIXELS = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP1 to APP13, APP15, COM. APP0 and APP14 define the colour space
_PILLOWS_CMYK = [[luma, (1, 1), (1, 1), (1, 1)] for luma in ((2, 1), (1, 2), (2, 2))]  # factors of subsampled CMYK


def is_progressive(image: bytes) -> bool:
    """Return whether a JPEG, whose header was read without an error, is progressive."""
    frames = (marker for marker, _, _ in _walk(image) if marker in _FRAMES)
    return next(frames, 0) in _PROGRESSIVE


def _read_header(image: bytes, limits: Limits) -> Header:
    return _glance(image, limits) or _read_segments(image, limits)


def _glance(image: bytes, limits: Limits) -> Header | None:
    """Read the header of a thumbnail by TurboJPEG alone, which is faster.

    Returns:
        None if the image is too large, or could have an orientation: then its segments must be read.
    """
    if len(image) > GLANCE_BYTES or _ORIENTED[0] in image or _ORIENTED[1] in image:
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


def _read_segments(image: bytes, limits: Limits) -> Header:
    """Walk the segments up to the first scan, and count the scans."""
    kept, exif, xmp, frame, scan = [(0, 2)], b"", b"", None, 0
    for marker, start, end in _walk(image):
        scan = start
        if marker not in _NO_PIXELS:
            kept.append((start - 4, len(image) if marker == _SCAN else end))
        if marker in _FRAMES and frame is None:
            frame = marker, image[start:end]
        elif marker == 0xE1 and not exif and image.startswith(EXIF, start):
            exif = image[start:end]
        elif marker == 0xE1 and image.startswith(_XMP, start):
            xmp = image[start:end]
    if frame is None:
        raise ImageUnreadable("image is truncated or damaged: a JPEG without a frame", cause="no frame")
    check_pixel_count(struct.unpack_from(">xHH", frame[1])[::-1], limits)
    header = _describe(image, kept, frame, scan, find_orientation(exif, xmp))
    return header._replace(exif_damaged=is_exif_damaged(exif))


def _walk(image: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment, and start and end of its content; the last is the header of the first scan."""
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


def _describe(
    image: bytes, kept: list[tuple[int, int]], frame: tuple[int, bytes], scan: int, orientation: int
) -> Header:
    """Build the header from the frame and the scans.

    Args:
        image: All encoded bytes.
        kept: Start and end of the parts that the decoder needs.
        frame: The marker of the frame, and its content.
        scan: The start of the header of the first scan.
        orientation: 1 to 8.
    """
    marker, content = frame
    _, height, width, count = struct.unpack_from(">BHHB", content)
    factors = [divmod(content[7 + 3 * number], 16) for number in range(count)]
    max_x, max_y = max((x for x, _ in factors), default=0), max((y for _, y in factors), default=0)
    if not (width and height and max_x and max_y):
        raise ImageUnreadable("image is truncated or damaged: a JPEG of no pixels", cause="no pixels")
    padded = -(-width // (8 * max_x)) * 8 * max_x * -(-height // (8 * max_y)) * 8 * max_y
    decoder_bytes = width * height * (1 if count == 1 else 4)
    if marker in _PROGRESSIVE or image[scan] < count:  # else the decoder stops after one scan
        scans = image.count(b"\xff\xda", scan) + 1
        decoder_bytes += 2 * sum(padded * x * y // (max_x * max_y) for x, y in factors)  # all coefficients at once
    else:
        scans = 1
    _check_work(padded * scans, marker, (width, height), scans)
    components = 0 if factors in _PILLOWS_CMYK else count
    if components:
        _check_turbojpeg(image, (height, width), factors)
    direct = _MODES.get(components, "") if orientation == 1 else ""
    decoder_bytes += len(image)  # the kept parts, joined, or a copy with a repaired header
    return Header(
        *("JPEG", width, height, orientation, image, tuple(kept), decoder_bytes, 64 * width * count, components, direct)
    )


def _check_work(pixels: int, marker: int, size: tuple[int, int], scans: int) -> None:
    """Check the work that the scans of a JPEG take.

    Args:
        pixels: Pixels of all scans, padded to whole blocks.
        marker: The marker of the frame.
        size: (width, height).
        scans: The number of scans.

    Raises:
        ImageTooComplex: It exceeds ``MAX_SCAN_PIXELS``.
    """
    arithmetic = marker in _ARITHMETIC
    work = pixels * (ARITHMETIC_SCANS if arithmetic else 1)
    if work > MAX_SCAN_PIXELS:
        raise ImageTooComplex(
            f"a JPEG of {size[0]}x{size[1]} pixels in {scans} scans{' coded arithmetically' * arithmetic}, "
            f"the limit is {MAX_SCAN_PIXELS * scans // work} scans: save it again as a baseline JPEG",
            scans=scans,
            limit_scans=MAX_SCAN_PIXELS * scans // work,
        )


def _check_turbojpeg(image: bytes, size: tuple[int, int], factors: list[tuple[int, int]]) -> None:
    """Check that TurboJPEG reads the same header.

    Pillow decodes some sampling factors that TurboJPEG does not support, but does not report libjpeg-turbo's warnings
    of damage. Images with such factors cannot be verified; most are damaged, since encoders do not write them. The
    factors of CMYK that Pillow itself writes are an exception: no single flipped bit leads to them.

    Args:
        image: All encoded bytes.
        size: (height, width) in the frame.
        factors: (horizontal, vertical) of each component.

    Raises:
        ImageUnreadable: TurboJPEG reads another size, or cannot read the header.
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


CODEC = Codec(_read_header, JpegImagePlugin.JpegImageFile, lambda header, opened: header.orientation)
