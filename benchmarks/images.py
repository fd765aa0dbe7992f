"""Images within the limits of 10 MiB encoded and 50 million pixels that are as expensive as possible to decode."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SIDE = 7071  # squared: 49,999,041, below the limit of 50 million
FULL_BYTES = 10 * 2**20 - 4096


def save(picture: Image.Image, image_format: str, **options: object) -> bytes:
    """Encode a picture."""
    encoded = io.BytesIO()
    picture.save(encoded, image_format, **options)
    return encoded.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """Make a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    size: tuple[int, int],
    depth: int,
    colour_type: int,
    *,
    interlaced: bool = False,
    paeth: bool = False,
    extra: bytes = b"",
) -> bytes:
    """Make a black PNG of a kind that Pillow does not write.

    Args:
        size: Width and height in pixels.
        depth: Bits per sample.
        colour_type: Color type of the PNG specification.
        interlaced: Whether to interlace by Adam7.
        paeth: Whether to use the slowest filter.
        extra: Chunks between header and pixels.
    """
    width, height = size
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    row = bytes([paeth and 4]) + bytes(-(-width * depth * samples // 8))
    packer = zlib.compressobj(9)
    data = [packer.compress(row) for _ in range(height + (8 * height if interlaced else 0))]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
    return start + chunk(b"IDAT", b"".join([*data, packer.flush()])) + chunk(b"IEND", b"")


def after_header(image: bytes, extra: bytes) -> bytes:
    """Insert chunks after the header of a PNG, or segments after the first marker of a JPEG."""
    place = 33 if image.startswith(b"\x89PNG") else 2
    return image[:place] + extra + image[place:]


def segment(marker: int, data: bytes) -> bytes:
    """Make a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def exif_bomb(size_bytes: int, entries: int) -> bytes:
    """Make an EXIF block whose entries all refer to the same bytes."""
    room = size_bytes - 14 - 12 * entries
    packed = b"".join(struct.pack("<HHII", 0x8000 + n, 7, room // 2, 10 + 12 * entries) for n in range(entries))
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", entries) + packed + bytes(room)


def noise(side: int) -> Image.Image:
    """Make a square that compresses badly, from one tile."""
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = np.tile(tile, (-(-side // 64), -(-side // 64), 1))[:side, :side]
    return Image.fromarray(np.ascontiguousarray(pixels))


def flat(mode: str, side: int) -> Image.Image:
    """Make a square of one color."""
    return Image.new(mode, (side, side), {"RGBA": (9, 9, 9, 128), "CMYK": (9, 9, 9, 9)}.get(mode, 9))


def oriented(orientation: int = 6) -> bytes:
    """Make an EXIF block with an orientation."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def empty_scans(side: int, scans: int) -> bytes:
    """Make a progressive JPEG with scans that change nothing."""
    image = save(flat("RGB", side), "JPEG", progressive=True)
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0]))  # one component, coefficients 1 to 63, no bits
    return image[:-2] + scan * scans + image[-2:]


def arithmetic(side: int, size_bytes: int, *, progressive: bool = False) -> bytes:
    """Make an arithmetic-coded JPEG from arbitrary data.

    Args:
        side: Side in pixels.
        size_bytes: Size of the data of each scan.
        progressive: Whether to use ten scans instead of one.
    """
    image = save(flat("RGB", side), "JPEG", progressive=progressive, subsampling=0)
    data = b"\x55" * size_bytes
    start = image.index(b"\xff\xda")
    pieces = [image[:start].replace(b"\xff\xc2", b"\xff\xca", 1).replace(b"\xff\xc0", b"\xff\xc9", 1)]
    while start >= 0:
        end = start + 2 + int.from_bytes(image[start + 2 : start + 4], "big")
        pieces += [image[start:end], data]
        start = image.find(b"\xff\xda", end)
    return b"".join([*pieces, b"\xff\xd9"])


def restarts(side: int) -> bytes:
    """Make a JPEG that restarts after each block, without restart markers."""
    image = save(flat("RGB", side), "JPEG", subsampling=0)
    return after_header(image, segment(0xDD, b"\0\1"))


def rle_bmp(width: int, height: int, codes: bytes, bits: int = 8) -> bytes:
    """Make a run-length encoded BMP.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        codes: Pairs of bytes, without the end code.
        bits: 8 or 4 bits per pixel.
    """
    palette = b"".join(bytes([n, 255 - n, n, 0]) for n in range(2**bits))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 1 if bits == 8 else 2, len(codes), 0, 0, 0, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(codes), 0, 0, start) + header + palette + codes + b"\0\1"


def raw_bmp(side: int, bits: int) -> bytes:
    """Make the header of an uncompressed BMP without its pixels."""
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(1024)


def webp_frames(side: int, frames: int) -> bytes:
    """Make an animation of many small frames on a large canvas."""
    still = save(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    frame = struct.pack("<4sI", b"ANMF", 16 + len(still)) + bytes(16) + still
    canvas = struct.pack("<I", side - 1)[:3] * 2
    body = b"WEBP" + struct.pack("<4sI", b"VP8X", 10) + bytes([2, 0, 0, 0]) + canvas
    body += struct.pack("<4sIIH", b"ANIM", 6, 0, 0) + frame * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


class _Bits:
    """A bit stream, least significant bit first."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def add(self, value: int, count: int) -> None:
        self._pieces.append(f"{value:0{count}b}"[::-1])

    def to_bytes(self) -> bytes:
        text = "".join(self._pieces)
        text += "0" * (-len(text) % 8)
        return int(text[::-1], 2).to_bytes(len(text) // 8, "little")


def webp_groups(side: int) -> bytes:
    """Make a lossless WebP with another set of Huffman codes for every 4x4 pixels, up to 65,536 of them."""
    bits, blocks = _Bits(), -(-side // 4)
    for value, count in ((side - 1, 14), (side - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (1, 1), (0, 3)):
        bits.add(value, count)  # size, no alpha, version, no transform, no color cache, Huffman image of 4x4 pixels
    bits.add(0, 1)  # which has no colour cache
    groups = min(blocks * blocks, 65536)

    def add_bytes_code(alphabet: int) -> None:
        """All 256 values in eight bits each: code lengths of 8, then of 0."""
        bits.add(0, 1)
        bits.add(8, 4)  # 12 lengths, in this order: 17 18 0 1 2 3 4 5 16 6 7 8
        for length in (0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1):
            bits.add(length, 3)
        bits.add(0, 1)  # all symbols follow
        for _ in range(256):
            bits.add(0, 1)  # 8, the first of two codes
        left = alphabet - 256
        while left:
            run = min(138, left)
            bits.add(1, 1)
            bits.add(run - 11, 7)
            left -= run

    def add_single() -> None:
        """A code of one symbol, 0."""
        for value in (1, 0, 0, 0):
            bits.add(value, 1)

    add_bytes_code(280)  # green: the group's low byte
    add_bytes_code(256)  # red: its high byte
    for _ in range(3):
        add_single()
    for number in range(blocks * blocks):
        group = min(number, groups - 1)
        for byte in (group & 255, group >> 8):
            bits.add(int(f"{byte:08b}"[::-1], 2), 8)
    for _ in range(groups):
        for _ in range(5):
            add_single()
    data = b"\x2f" + bits.to_bytes() + bytes(16)
    data += b"\0" * (len(data) & 1)
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


def apng(side: int, frames: int) -> bytes:
    """Make an animated PNG of many frames."""
    still = png((side, side), 8, 6)
    control = chunk(b"acTL", struct.pack(">II", frames, 0))
    first = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, side, side, 0, 0, 1, 10, 0, 0))
    pixels = zlib.compress(bytes((side * 4 + 1) * side), 9)
    more = b"".join(
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * n - 1, side, side, 0, 0, 1, 10, 2, 1))
        + chunk(b"fdAT", struct.pack(">I", 2 * n) + pixels)
        for n in range(1, frames)
    )
    end = len(still) - 12
    return after_header(still[:end], control + first) + more + still[end:]


def idat_bytes_of_blocks(size_bytes: int) -> bytes:
    """Make a PNG whose data are empty blocks of Huffman codes, followed by the actual data."""
    stored = b"\0\0\0\xff\xff"  # a stored block of no bytes
    rows = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"\x78\x9c" + stored * (size_bytes // 5) + rows.compress(bytes(64 * 193)) + rows.flush()
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    data += struct.pack(">I", zlib.adler32(bytes(64 * 193)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pictures_in_one(entries: int) -> bytes:
    """Make a JPEG that announces many more."""
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">H", 3)
    tiff += struct.pack(">HHI4s", 0xB000, 7, 4, b"0100") + struct.pack(">HHII", 0xB001, 4, 1, entries)
    tiff += struct.pack(">HHII", 0xB002, 7, 16 * entries, 50) + bytes(4) + bytes(16 * entries)
    return after_header(save(flat("RGB", 64), "JPEG"), segment(0xE2, b"MPF\0" + tiff))


def small_png() -> bytes:
    """Save a small PNG, to put other chunks into."""
    return save(flat("RGB", 64), "PNG")


def small_jpeg() -> bytes:
    """Save a small JPEG, to put other segments into."""
    return save(flat("RGB", 64), "JPEG")


# Name -> makes it, of a share of the full size: 1 for the benchmark, less for tests.
WORST: dict[str, Callable[[float], bytes]] = {
    "black PNG": lambda share: png((int(SIDE * share),) * 2, 8, 2),
    "interlaced 16-bit RGBA PNG": lambda share: png((int(SIDE * share),) * 2, 16, 6, interlaced=True),
    "16-bit RGBA PNG, filtered": lambda share: png((int(SIDE * share),) * 2, 16, 6, paeth=True),
    "16-bit grey PNG": lambda share: png((int(SIDE * share),) * 2, 16, 0),
    "palette PNG with alpha": lambda share: png(
        (int(SIDE * share),) * 2, 8, 3, extra=chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(range(256)))
    ),
    "RGB PNG with a transparent colour": lambda share: png(
        (int(SIDE * share),) * 2, 8, 2, extra=chunk(b"tRNS", bytes(6))
    ),
    "PNG of few rows": lambda share: png((65_535, int(762 * share)), 16, 6),
    "PNG of few columns": lambda share: png((int(762 * share), 65_535), 8, 6),
    "PNG of one column": lambda share: png((1, int(SIDE**2 * share**2)), 8, 6),
    "PNG with an EXIF bomb": lambda share: after_header(
        small_png(), chunk(b"eXIf", exif_bomb(int(FULL_BYTES * share), 1000)[6:])
    ),
    "PNG with text bombs": lambda share: after_header(
        small_png(),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**20 - 1), 9)) * int(9000 * share),
    ),
    "PNG of empty chunks": lambda share: after_header(small_png(), chunk(b"tEXt", b"") * int(870_000 * share)),
    "PNG of empty blocks": lambda share: idat_bytes_of_blocks(int(FULL_BYTES * share)),
    "animated PNG": lambda share: apng(int(2000 * share), int(500 * share) + 2),
    "giant WebP": lambda share: save(Image.new("RGB", (int(4096 * share),) * 2, 9), "WEBP", lossless=True),
    "giant WebP with alpha": lambda share: save(flat("RGBA", int(4096 * share)), "WEBP", quality=50),
    "WebP of many frames": lambda share: webp_frames(int(4096 * share), int(200_000 * share)),
    "WebP of fewer frames": lambda share: webp_frames(int(4096 * share), int(3_900 * share)),
    "WebP of many codes": lambda share: webp_groups(int(1024 * share)),
    "JPEG of empty scans": lambda share: empty_scans(int(2000 * share), int(25_000 * share)),
    "JPEG of as many scans as are allowed": lambda share: empty_scans(int(2000 * share), 235),
    "large JPEG of as many scans as are allowed": lambda share: empty_scans(int(SIDE * share), 9),
    "progressive JPEG": lambda share: save(
        noise(int(SIDE * share)), "JPEG", quality=10, progressive=True, subsampling=0
    ),
    "progressive CMYK JPEG, turned": lambda share: save(
        flat("CMYK", int(SIDE * share)), "JPEG", progressive=True, exif=oriented()
    ),
    "JPEG cut in half": lambda share: (image := save(noise(int(SIDE * share)), "JPEG", quality=10, progressive=True))[
        : len(image) // 2
    ],
    "arithmetic JPEG": lambda share: arithmetic(int(SIDE * share), int(FULL_BYTES * share)),
    "progressive arithmetic JPEG": lambda share: arithmetic(int(3000 * share), int(900_000 * share), progressive=True),
    "JPEG of restarts": lambda share: restarts(int(SIDE * share)),
    "JPEG of comments": lambda share: after_header(small_jpeg(), segment(0xFE, b"") * int(2_600_000 * share)),
    "JPEG of fill bytes": lambda share: after_header(small_jpeg(), b"\xff" * int(FULL_BYTES * share)),
    "JPEG with EXIF bombs": lambda share: after_header(
        small_jpeg(), segment(0xE1, exif_bomb(60_000, 2000)) * int(170 * share)
    ),
    "JPEG that announces others": lambda share: pictures_in_one(int(4000 * share)),
    "BMP of line ends": lambda share: rle_bmp(int(SIDE * share), int(SIDE * share), b"\1\1\0\0" * 250),
    "BMP of line ends, small": lambda share: rle_bmp(int(1000 * share), int(1000 * share), b"\1\1\0\0" * 1000),
    "BMP of 4-bit runs, small": lambda share: rle_bmp(
        int(1000 * share), int(1000 * share), (b"\xfa\x12" * int(4 * share) + b"\0\0") * int(1000 * share), bits=4
    ),
    "32-bit BMP without its pixels": lambda share: raw_bmp(int(SIDE * share), 32),
}
