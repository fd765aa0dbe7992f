"""Properties of the image parsers: any bytes are an image within the limits or rejected; no other error is raised."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evalmode.errors import ImageError, UsageError
from evalmode.images.exif import find_orientation, is_exif_damaged
from evalmode.images.formats import FORMATS
from evalmode.images.headers import read_header
from evalmode.images.label_files import parse_labels
from evalmode.images.pixels import PixelContract, decode_by_header, decode_whole_by_header, probe_header
from evalmode.limits import Limits
from tests.conftest import encode
from tests.mutated import mutated, started

LIMITS = Limits(max_image_bytes=4096, max_image_pixels=10_000)
CONTRACT = PixelContract(8, 6, 3)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6
HEICS = [path.read_bytes() for path in sorted((Path(__file__).parent / "photos").glob("*.heic"))]
VARIANTS: dict[str, list[bytes]] = {
    "JPEG": [
        encode(NOISE, "JPEG"),
        encode(NOISE.convert("L"), "JPEG", progressive=True),
        encode(NOISE.convert("CMYK"), "JPEG", exif=ORIENTED),
    ],
    "PNG": [
        encode(NOISE, "PNG", exif=ORIENTED),
        encode(NOISE.convert("P"), "PNG"),
        encode(NOISE.convert("LA"), "PNG"),
        encode(Image.fromarray(np.arange(63, dtype=np.uint16).reshape(9, 7) * 1000), "PNG"),
    ],
    "WEBP": [encode(NOISE, "WEBP", exif=ORIENTED), encode(NOISE.convert("RGBA"), "WEBP", lossless=True)],
    "BMP": [encode(NOISE, "BMP"), encode(NOISE.convert("P"), "BMP"), encode(NOISE.convert("1"), "BMP")],
    "GIF": [
        encode(NOISE, "GIF"),
        encode(NOISE.convert("L"), "GIF", transparency=3, comment=b"text"),
        encode(NOISE, "GIF", save_all=True, append_images=[Image.new("RGB", NOISE.size)]),
    ],
    "TIFF": [
        encode(NOISE, "TIFF", tiffinfo={0x0112: 6}),
        encode(NOISE.convert("L"), "TIFF", compression="tiff_lzw"),
        encode(NOISE.convert("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
        encode(NOISE, "TIFF", big_tiff=True),
    ],
    "AVIF": [encode(NOISE, "AVIF", speed=10), encode(NOISE.convert("RGBA"), "AVIF", speed=10, exif=ORIENTED)],
    "HEIC": HEICS,
}
STARTS = {
    "JPEG": [b"\xff\xd8\xff", b"\xff\xd8\xff\xc0\0\x11\x08\0\x08\0\x08\x03"],
    "PNG": [b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"],
    "WEBP": [b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0", b"RIFF\0\0\0\0WEBPVP8L", b"RIFF\0\0\0\0WEBPVP8 "],
    "BMP": [b"BM" + bytes(12) + struct.pack("<I", size) for size in (12, 40, 124)],
    "GIF": [b"GIF89a", b"GIF87a\x08\0\x08\0\0\0\0,"],
    "TIFF": [b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0"],
    "AVIF": [b"\0\0\0\x14ftypavif\0\0\0\0mif1", VARIANTS["AVIF"][0][:150]],
    "HEIC": [b"\0\0\0\x14ftypheic\0\0\0\0mif1", HEICS[0][:150]],
}
# Each example takes a hundred times as long as with the other formats.
SLOW = ("AVIF", "HEIC")


def test_every_format_has_its_variants() -> None:
    assert [*VARIANTS] == [*STARTS] == [one.name for one in FORMATS]


@pytest.mark.parametrize("name", VARIANTS)
def test_undamaged_variants_are_decoded(name: str) -> None:
    if name == "HEIC":
        pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    for image in VARIANTS[name]:
        assert check_decoding(image)


@pytest.mark.parametrize("name", VARIANTS)
def test_damaged_images_are_decoded_or_rejected(name: str) -> None:
    @settings(max_examples=40 if name in SLOW else 200, deadline=None)
    @given(mutated(VARIANTS[name]))
    def check(image: bytes) -> None:
        check_decoding(image)

    check()


@pytest.mark.parametrize("name", STARTS)
def test_any_bytes_after_a_signature_are_decoded_or_rejected(name: str) -> None:
    @settings(max_examples=40 if name in SLOW else 200, deadline=None)
    @given(started(STARTS[name]))
    def check(image: bytes) -> None:
        check_decoding(image)

    check()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_bytes_without_a_signature_are_rejected(image: bytes) -> None:
    if not any(one.signature.match(image) for one in FORMATS):
        with pytest.raises(ImageError):
            read_header(image, LIMITS, FORMATS)


def check_decoding(image: bytes) -> bool:
    """Decode an image with every function; return whether it was accepted."""
    try:
        header = read_header(image, LIMITS, FORMATS)
        assert header.width * header.height <= LIMITS.max_image_pixels
        assert header.decoder_bytes >= 0
        contract = probe_header(header)
        pixels = decode_by_header(header, CONTRACT)
        whole = decode_whole_by_header(header, 1)
    except ImageError:
        return False
    assert pixels.shape == CONTRACT.shape
    assert whole.shape == (contract.height, contract.width, 1)
    assert pixels.dtype == whole.dtype == np.uint8
    return True


@settings(max_examples=300, deadline=None)
@given(mutated([ORIENTED.tobytes()]), st.binary(max_size=60))
def test_any_exif_block_has_an_orientation(exif: bytes, xmp: bytes) -> None:
    assert find_orientation(exif, xmp) >= 0
    assert is_exif_damaged(exif) in (True, False)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | mutated(["café\r\nthé\n".encode(), "a\nb\n".encode("utf-16")]))
def test_any_label_file_is_read_or_rejected(content: bytes) -> None:
    try:
        labels = parse_labels(content, "labels.txt")
    except UsageError:
        return
    assert len(set(labels)) == len(labels) >= 2
    assert all(label and label == label.strip() for label in labels)
