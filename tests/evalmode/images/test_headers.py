"""What is read and refused before anything is decoded: the worst images of the benchmark, at a share of their size."""

from __future__ import annotations

import io
import struct
import zlib
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from benchmarks import worst_images
from benchmarks.decoded_apart import measure_apart
from benchmarks.worst_images import WORST, after_header, arithmetic, chunk, empty_scans, png, segment
from evalmode.errors import ImageError, ImageTooComplex, ImageTooManyPixels, ImageUnreadable
from evalmode.images import jpeg
from evalmode.images.exif import find_orientation
from evalmode.images.headers import Header, read_header
from evalmode.images.pixels import PixelContract, decode_image
from evalmode.limits import Limits
from serving.engine.decoding import count_decode_bytes
from tests.conftest import encode, plain

CONTRACT = PixelContract(8, 8, 3)
SHARE = 0.15


def announce(image: bytes) -> Header:
    return read_header(image, Limits())


@pytest.mark.parametrize("name", WORST)
def test_the_worst_images_take_no_more_memory_than_they_are_counted_as(name: str) -> None:
    image = WORST[name](SHARE)
    try:
        counted = count_decode_bytes(announce(image), CONTRACT)
    except ImageError:
        counted = 2 * jpeg.MAX_FILL_BYTES  # refused by the header: nothing to speak of
    small = encode(plain("red", (64, 64)))
    taken = measure_apart(
        lambda: decode_image(image, CONTRACT, Limits()), lambda: decode_image(small, CONTRACT, Limits())
    )
    assert taken.peak_bytes <= counted + 2**20
    assert taken.answer in ("ok", "ImageTooComplex", "ImageTooManyPixels", "ImageUnreadable")


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (empty_scans(1000, 1200), "scans, the limit is [0-9]+ scans: save it again as a baseline JPEG"),
        (arithmetic(4000, 100, progressive=True), "coded arithmetically"),
        (after_header(encode(plain("red"), "JPEG"), segment(0xFE, b"") * 2000), "512 segments"),
        (after_header(encode(plain("red"), "JPEG"), b"\xff" * 70_000), "65536 bytes between"),
        (after_header(encode(plain("red"), "JPEG"), segment(0xFE, b"") + b"ab" * 40_000), "65536 bytes between"),
        (after_header(encode(plain("red")), chunk(b"tEXt", b"") * 20_001), "20000 chunks"),
        (worst_images.webp_frames(64, 4_001), "4000 chunks"),
        (worst_images.rle_bmp(1000, 1001, b""), "1000x1001 pixels in run lengths, the limit is 1000000"),
    ],
    ids=["scans", "arithmetic", "segments", "fill bytes", "junk", "png chunks", "webp chunks", "run lengths"],
)
def test_work_that_its_size_does_not_explain_is_refused(image: bytes, named: str) -> None:
    with pytest.raises(ImageTooComplex, match=named) as refused:
        announce(image)
    assert refused.value.facts


def test_scans_are_allowed_as_long_as_their_pixels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "GLANCE_BYTES", 0)
    image = empty_scans(64, 90)  # and the ten of every progressive JPEG
    monkeypatch.setattr(jpeg, "MAX_SCAN_PIXELS", 100 * 64 * 64)
    assert announce(image).width == 64
    monkeypatch.setattr(jpeg, "MAX_SCAN_PIXELS", 100 * 64 * 64 - 1)
    with pytest.raises(ImageTooComplex, match="64x64 pixels in 100 scans, the limit is 99 scans"):
        announce(image)


def test_a_thumbnail_is_not_walked_where_no_work_could_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    image = encode(plain("red", (32, 32)), "JPEG")
    monkeypatch.setattr(jpeg, "_read_segments", lambda *_: pytest.fail("walked"))
    assert announce(image).direct == "RGB"


def test_a_thumbnail_of_many_scans_is_walked() -> None:
    with patch.object(jpeg, "_read_segments", wraps=jpeg._read_segments) as walk:
        announce(empty_scans(1000, 200))
    walk.assert_called_once()


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_a_side_is_at_most_that_of_a_jpeg(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooManyPixels, match="65535 a side"):
        announce(png(size, 8, 2))


def test_a_webp_is_smaller_than_other_images() -> None:
    with pytest.raises(ImageTooManyPixels, match="16777216"):
        announce(encode(plain("red", (4097, 4096)), "WEBP", lossless=True))


def test_the_decoder_gets_nothing_that_decides_no_pixel() -> None:
    text = chunk(b"tEXt", b"Comment\0text")
    image = after_header(encode(plain("red")), text + chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(9))))
    assert announce(image).cut() == encode(plain("red"))
    jpeg = encode(plain("red"), "JPEG")
    assert announce(after_header(jpeg, segment(0xE1, bytes(9)) + segment(0xFE, bytes(4000)))).cut() == jpeg


def test_what_tells_the_orientation_stays_wherever_it_stands() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    eight = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = encode(Image.fromarray(eight))
    exif = chunk(b"eXIf", turned.tobytes()[6:])
    raw = chunk(b"tEXt", b"Raw profile type exif\0\nexif\n1\n" + turned.tobytes().hex().encode())
    xmp = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    for told in (exif, raw, xmp):
        for marked in (after_header(image, told), image[:-12] + told + image[-12:]):
            assert np.array_equal(decode_image(marked, CONTRACT, Limits()), np.rot90(eight, -1))


def test_a_chunk_with_a_wrong_checksum_is_refused_although_it_is_left_out() -> None:
    text = bytearray(chunk(b"tEXt", b"Comment\0text"))
    text[-1] ^= 1
    with pytest.raises(ImageUnreadable, match="checksum"):
        announce(after_header(encode(plain("red")), bytes(text)))


def test_an_image_that_announces_two_sizes_is_refused() -> None:
    """What was counted is not what would be decoded."""
    image = encode(plain("red", (8, 8)), "JPEG")
    start = image.index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", image, start + 2)
    frame = bytearray(image[start : start + 2 + length])
    frame[5:9] = struct.pack(">HH", 3000, 3000)
    doubled = image[: start + 2 + length] + bytes(frame) + image[start + 2 + length :]
    with pytest.raises(ImageUnreadable):
        decode_image(doubled, CONTRACT, Limits())


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_found_among_others(order: str) -> None:
    def block(*entries: tuple[int, int, int, bytes]) -> bytes:
        packed = b"".join(struct.pack(order + "HHI4s", *entry) for entry in entries)
        mark = b"II*\0" if order == "<" else b"MM\0*"
        return b"Exif\0\0" + mark + struct.pack(order + "IH", 8, len(entries)) + packed

    six = struct.pack(order + "HH", 6, 0)
    other = (0x0100, 4, 1, bytes(4))
    assert find_orientation(block(other, (0x0112, 3, 1, six), other)) == 6
    assert find_orientation(block((0x0112, 3, 1, six), (0x0112, 3, 1, bytes(4)))) == 6
    assert find_orientation(block(other)) == 1
    assert find_orientation(block((0x0112, 2, 1, six))) == 1  # text
    assert find_orientation(block(other, (0x0112, 3, 1, six))[:-13]) == 1  # cut before it
    assert find_orientation(b"", b'<x tiff:Orientation="3"/>') == 3
    assert find_orientation(block((0x0112, 3, 1, six)), b'<x tiff:Orientation="3"/>') == 6


def test_pillow_gives_the_same_orientation() -> None:
    for value in range(1, 9):
        block = Image.Exif()
        block[0x0112] = value
        image = encode(plain("red"), "PNG", exif=block)
        with Image.open(io.BytesIO(image)) as opened:
            assert find_orientation(opened.info["exif"]) == opened.getexif()[0x0112] == value


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("block", "damaged"),
    [
        (b"Exif\0\0MM\0*\xff\xff\xff\x7f\0\2" + bytes(24), True),
        (b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(24), True),
        (b"Exif\0\0garbage garbage", True),
        (b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(4), False),
        (b"Exif\0\0", False),
        (b"", False),
    ],
    ids=["offset", "count", "garbage", "no entries", "empty", "none"],
)
def test_a_damaged_exif_block_is_noticed(image_format: str, block: bytes, damaged: bool) -> None:
    image = encode(plain("red", (16, 16)), image_format, exif=block)
    assert announce(image).exif_damaged == damaged
