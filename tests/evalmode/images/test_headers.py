"""Too complex images are rejected by their header, before decoding; with the worst images of the benchmark."""

from __future__ import annotations

import io
import struct
import zlib
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from benchmarks import images
from benchmarks.decoded_apart import measure_apart
from benchmarks.images import WORST, after_header, arithmetic, chunk, empty_scans, png, segment
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


def read(image: bytes) -> Header:
    return read_header(image, Limits())


@pytest.mark.parametrize("name", WORST)
def test_the_worst_images_need_no_more_memory_than_estimated(name: str) -> None:
    image = WORST[name](SHARE)
    try:
        estimated_bytes = count_decode_bytes(read(image), CONTRACT)
    except ImageError:
        estimated_bytes = 2 * jpeg.MAX_FILL_BYTES  # rejected by the header
    small = encode(plain("red", (64, 64)))
    measured = measure_apart(
        lambda: decode_image(image, CONTRACT, Limits()), lambda: decode_image(small, CONTRACT, Limits())
    )
    assert measured.peak_bytes <= estimated_bytes + 2**20
    assert measured.answer in ("ok", "ImageTooComplex", "ImageTooManyPixels", "ImageUnreadable")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (empty_scans(1000, 1200), "scans, the limit is [0-9]+ scans: save it again as a baseline JPEG"),
        (arithmetic(4000, 100, progressive=True), "coded arithmetically"),
        (after_header(encode(plain("red"), "JPEG"), segment(0xFE, b"") * 2000), "512 segments"),
        (after_header(encode(plain("red"), "JPEG"), b"\xff" * 70_000), "65536 bytes between"),
        (after_header(encode(plain("red"), "JPEG"), segment(0xFE, b"") + b"ab" * 40_000), "65536 bytes between"),
        (after_header(encode(plain("red")), chunk(b"tEXt", b"") * 20_001), "20000 chunks"),
        (images.webp_frames(64, 4_001), "4000 chunks"),
        (images.rle_bmp(1000, 1001, b""), "1000x1001 pixels in run lengths, the limit is 1000000"),
    ],
    ids=["scans", "arithmetic", "segments", "fill bytes", "other bytes", "png chunks", "webp chunks", "run lengths"],
)
def test_images_too_complex_for_their_size_are_rejected(image: bytes, message: str) -> None:
    with pytest.raises(ImageTooComplex, match=message) as caught:
        read(image)
    assert caught.value.facts


def test_the_number_of_scans_is_limited_by_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "GLANCE_BYTES", 0)
    image = empty_scans(64, 90)  # added to the ten scans of a progressive JPEG
    monkeypatch.setattr(jpeg, "MAX_SCAN_PIXELS", 100 * 64 * 64)
    assert read(image).width == 64
    monkeypatch.setattr(jpeg, "MAX_SCAN_PIXELS", 100 * 64 * 64 - 1)
    with pytest.raises(ImageTooComplex, match="64x64 pixels in 100 scans, the limit is 99 scans"):
        read(image)


def test_the_segments_of_a_small_jpeg_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    image = encode(plain("red", (32, 32)), "JPEG")
    monkeypatch.setattr(jpeg, "_read_segments", lambda *_: pytest.fail("the segments were read"))
    assert read(image).direct == "RGB"


def test_the_segments_of_a_jpeg_with_many_scans_are_read() -> None:
    with patch.object(jpeg, "_read_segments", wraps=jpeg._read_segments) as read_segments:
        read(empty_scans(1000, 200))
    read_segments.assert_called_once()


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_a_side_over_65535_pixels_is_rejected(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooManyPixels, match="65535 a side"):
        read(png(size, 8, 2))


def test_the_limit_on_pixels_is_lower_for_webp() -> None:
    with pytest.raises(ImageTooManyPixels, match="16777216"):
        read(encode(plain("red", (4097, 4096)), "WEBP", lossless=True))


def test_metadata_without_effect_on_pixels_are_removed_before_decoding() -> None:
    text = chunk(b"tEXt", b"Comment\0text")
    image = after_header(encode(plain("red")), text + chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(9))))
    assert read(image).cut() == encode(plain("red"))
    jpeg = encode(plain("red"), "JPEG")
    assert read(after_header(jpeg, segment(0xE1, bytes(9)) + segment(0xFE, bytes(4000)))).cut() == jpeg


def test_the_orientation_is_kept_before_and_after_the_pixels() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    eight = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = encode(Image.fromarray(eight))
    exif = chunk(b"eXIf", turned.tobytes()[6:])
    raw = chunk(b"tEXt", b"Raw profile type exif\0\nexif\n1\n" + turned.tobytes().hex().encode())
    xmp = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    for orientation in (exif, raw, xmp):
        for marked in (after_header(image, orientation), image[:-12] + orientation + image[-12:]):
            assert np.array_equal(decode_image(marked, CONTRACT, Limits()), np.rot90(eight, -1))


def test_a_removed_chunk_with_a_wrong_checksum_is_rejected() -> None:
    text = bytearray(chunk(b"tEXt", b"Comment\0text"))
    text[-1] ^= 1
    with pytest.raises(ImageUnreadable, match="checksum"):
        read(after_header(encode(plain("red")), bytes(text)))


def test_an_image_with_two_frame_headers_is_rejected() -> None:
    """Its memory is estimated by the first header, and the decoder would use the second."""
    image = encode(plain("red", (8, 8)), "JPEG")
    start = image.index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", image, start + 2)
    frame = bytearray(image[start : start + 2 + length])
    frame[5:9] = struct.pack(">HH", 3000, 3000)
    doubled = image[: start + 2 + length] + bytes(frame) + image[start + 2 + length :]
    with pytest.raises(ImageUnreadable):
        decode_image(doubled, CONTRACT, Limits())


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_found_among_other_tags(order: str) -> None:
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
    assert find_orientation(block(other, (0x0112, 3, 1, six))[:-13]) == 1  # truncated before the tag
    assert find_orientation(b"", b'<x tiff:Orientation="3"/>') == 3
    assert find_orientation(block((0x0112, 3, 1, six)), b'<x tiff:Orientation="3"/>') == 6


def test_the_orientation_is_that_of_pillow() -> None:
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
def test_a_damaged_exif_block_is_detected(image_format: str, block: bytes, damaged: bool) -> None:
    image = encode(plain("red", (16, 16)), image_format, exif=block)
    assert read(image).exif_damaged == damaged
