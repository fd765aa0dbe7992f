"""The decoding table of docs/reference/images.md: exact pixels for each row; every other image is an ImageError."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from benchmarks.soak.damage import DAMAGES, FORMATS, make_damaged
from evalmode.errors import (
    ImageEmpty,
    ImageError,
    ImageFormatNotAllowed,
    ImageTooLarge,
    ImageTooManyPixels,
    ImageUnreadable,
    PixelsMismatch,
)
from evalmode.images.pixels import (
    PixelContract,
    check_pixels,
    decode_image,
    decode_whole,
    probe_image,
)
from evalmode.limits import Limits
from tests.by_pillow import decode_by_pillow
from tests.conftest import encode, plain

RGB = PixelContract(4, 4, 3)
GREY = PixelContract(4, 4, 1)
NOISE = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
ORIENTATION = 0x0112


def decode(image: bytes, contract: PixelContract = RGB, **limits: int) -> np.ndarray:
    return decode_image(image, contract, Limits(**limits))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes | None, extra: bytes = b"") -> bytes:
    """Write a PNG of a kind that Pillow does not write; without ``rows`` it ends after its header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
    return start if rows is None else start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_rows(values: np.ndarray) -> bytes:
    """Unfiltered rows of big-endian 16-bit values, (height, width, ...)."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


def exif(*entries: tuple[int, int, int, int]) -> bytes:
    """An EXIF block of (tag, type, count, value) entries, little endian."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


# EXIF orientation -> the stored form of an upright picture.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}


class TestOrientation:
    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
    def test_is_applied(self, image_format: str, orientation: int) -> None:
        upright = np.random.default_rng(1).integers(0, 256, (3, 5, 3), np.uint8)
        stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
        options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
        image = encode(stored, image_format, exif=exif((ORIENTATION, 3, 1, orientation)), **options)
        assert np.array_equal(decode(image, PixelContract(3, 5, 3)), upright)
        assert probe_image(image, Limits()) == PixelContract(3, 5, 3)

    def test_is_applied_to_a_jpeg(self) -> None:
        stored = Image.fromarray(NOISE)
        turned = encode(stored, "JPEG", exif=exif((ORIENTATION, 3, 1, 6)))
        assert np.array_equal(decode(turned), np.rot90(decode(encode(stored, "JPEG")), -1))

    def test_outside_the_standard_is_ignored(self) -> None:
        image = encode(Image.fromarray(NOISE), exif=exif((ORIENTATION, 3, 1, 99)))
        assert np.array_equal(decode(image), NOISE)

    @pytest.mark.parametrize("image_format", ["PNG", "WEBP", "JPEG"])
    @pytest.mark.parametrize(
        "broken",
        [b"Exif\0\0garbage", b"\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\xff\xff\xff\xff"],
        ids=["garbage", "one byte", "no entries", "offset beyond the end"],
    )
    def test_of_a_broken_exif_block_is_ignored(self, image_format: str, broken: bytes) -> None:
        options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
        picture = Image.fromarray(NOISE)
        without = decode(encode(picture, image_format, **options))
        assert np.array_equal(decode(encode(picture, image_format, exif=broken, **options)), without)
        assert probe_image(encode(picture, image_format, exif=broken, **options), Limits()) == RGB

    @pytest.mark.parametrize("image_format", ["PNG", "WEBP", "JPEG"])
    def test_is_applied_despite_a_tag_of_a_wrong_type(self, image_format: str) -> None:
        # ResolutionUnit as text: some cameras and editors write it, and every viewer shows the picture.
        block = exif((ORIENTATION, 3, 1, 6), (0x0128, 2, 4, 0x41414141))
        options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
        picture = Image.fromarray(NOISE)
        without = decode(encode(picture, image_format, **options))
        assert np.array_equal(decode(encode(picture, image_format, exif=block, **options)), np.rot90(without, -1))


class TestStrips:
    """Conversions run strip by strip, with the same bits as for the whole image."""

    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "I;16"])
    def test_are_placed_in_order(self, mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
        values = np.random.default_rng(2).integers(0, 256, (29, 23, 4), np.uint8)
        picture = Image.fromarray(values)
        if mode == "I;16":
            picture = Image.fromarray(values[:, :, 0].astype(np.uint16) * 251)
        elif mode == "P":
            picture = picture.convert("RGB").quantize(200)
        else:
            picture = picture.convert(mode)
        image = encode(picture, exif=exif((ORIENTATION, 3, 1, orientation)))
        for channels in (1, 3):
            monkeypatch.setattr("evalmode.images.orientation.STRIP_PIXELS", 2**17)
            whole = decode_whole(image, channels, Limits())
            monkeypatch.setattr("evalmode.images.orientation.STRIP_PIXELS", 100)
            assert np.array_equal(decode_whole(image, channels, Limits()), whole)


class TestColours:
    """Each row: a picture, and the value of all its pixels."""

    @pytest.mark.parametrize(
        ("picture", "value"),
        [
            (plain((255, 0, 0, 128), mode="RGBA"), (255, 127, 127)),  # 0 x 128/255 + 255 x 127/255
            (plain((9, 9, 9, 0), mode="RGBA"), (255, 255, 255)),
            (plain((9, 8, 7, 255), mode="RGBA"), (9, 8, 7)),
            (plain((100, 128), mode="LA"), (177, 177, 177)),  # 100 x 128/255 + 255 x 127/255 = 177.2
            (plain(77, mode="L"), (77, 77, 77)),
            (plain(1, mode="1"), (255, 255, 255)),
            (plain(0, mode="1"), (0, 0, 0)),
        ],
        ids=["half transparent", "transparent", "opaque", "grey with alpha", "grey", "bilevel white", "bilevel black"],
    )
    def test_are_converted_to_rgb(self, picture: Image.Image, value: tuple[int, ...]) -> None:
        pixels = decode(encode(picture))
        assert np.array_equal(pixels, np.full((4, 4, 3), value, np.uint8))

    @pytest.mark.parametrize(
        ("picture", "value"),
        [
            (plain((200, 100, 50)), 124),  # ITU-R 601: 0.299 R + 0.587 G + 0.114 B = 124.2
            (plain((0, 0, 0, 128), mode="RGBA"), 127),
            (plain((100, 128), mode="LA"), 177),
            (plain(77, mode="L"), 77),
            (plain(1, mode="1"), 255),
        ],
        ids=["RGB", "RGB with alpha", "grey with alpha", "grey", "bilevel"],
    )
    def test_are_converted_to_grey(self, picture: Image.Image, value: int) -> None:
        assert np.array_equal(decode(encode(picture), GREY), np.full((4, 4, 1), value, np.uint8))

    @pytest.mark.parametrize(
        ("transparency", "value"),
        [(None, (200, 100, 50)), (1, (255, 255, 255)), (b"\xff\x80", (227, 177, 152))],
        ids=["none", "index", "alpha table"],
    )
    def test_of_a_palette_are_converted_to_rgb(self, transparency: int | bytes | None, value: tuple[int, ...]) -> None:
        picture = plain(1, mode="P")
        picture.putpalette([10, 20, 30, 200, 100, 50])
        options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
        image = encode(picture, **options)
        assert np.array_equal(decode(image), np.full((4, 4, 3), value, np.uint8))

    def test_of_a_palette_are_converted_to_grey(self) -> None:
        picture = plain(1, mode="P")
        picture.putpalette([10, 20, 30, 200, 100, 50])
        assert np.array_equal(decode(encode(picture), GREY), np.full((4, 4, 1), 124, np.uint8))

    def test_declared_transparent_become_white(self) -> None:
        image = encode(plain((1, 2, 3)), transparency=(1, 2, 3))
        assert np.array_equal(decode(image), np.full((4, 4, 3), 255, np.uint8))

    @pytest.mark.parametrize(("contract", "value"), [(RGB, (255, 0, 0)), (GREY, (76,))], ids=["RGB", "grey"])
    def test_of_cmyk_are_converted(self, contract: PixelContract, value: tuple[int, ...]) -> None:
        image = encode(plain((0, 255, 255, 0), mode="CMYK"), "JPEG")
        assert np.array_equal(decode(image, contract), np.full(contract.shape, value, np.uint8))

    def test_of_transparent_pixels_do_not_affect_the_resized_image(self) -> None:
        picture = plain((255, 0, 0, 0), (16, 16), "RGBA")
        picture.paste((0, 0, 255, 255), (0, 0, 16, 5))
        pixels = decode(encode(picture))
        composited = plain("white", (16, 16))
        composited.paste((0, 0, 255), (0, 0, 16, 5))
        assert np.array_equal(pixels, np.asarray(composited.resize((4, 4), Image.Resampling.BILINEAR)))

    def test_of_sixteen_bit_grey_are_divided_by_257(self) -> None:
        wide = np.array([0, 128, 129, 257, 385, 386, 65535, 65406, 65407, 0x80FF, 0x8000, 257 * 200] + [0] * 4)
        image = png(4, 4, 16, 0, png_rows(wide.reshape(4, 4)))
        expected = np.array([0, 0, 1, 1, 1, 2, 255, 254, 255, 128, 128, 200] + [0] * 4)
        assert np.array_equal(decode(image, GREY).reshape(-1), expected)
        assert np.array_equal(decode(image), np.repeat(expected.reshape(4, 4, 1), 3, 2))

    def test_of_sixteen_bit_rgb_keep_their_high_byte(self) -> None:
        # Pillow has no 16-bit RGB and drops the low byte: 0x12FF becomes 0x12, although 4863 / 257 = 18.9.
        wide = np.full((4, 4, 3), (0x12FF, 0x00FF, 0xFFFF))
        image = png(4, 4, 16, 2, png_rows(wide))
        assert np.array_equal(decode(image), np.full((4, 4, 3), (0x12, 0, 0xFF), np.uint8))

    def test_of_an_animation_are_those_of_its_first_frame(self) -> None:
        frames = [plain(colour) for colour in ("red", "green", "blue")]
        for image_format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
            image = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
            assert np.array_equal(decode(image), np.full((4, 4, 3), (255, 0, 0), np.uint8)), image_format


class TestJpegs:
    """JPEGs are decoded by TurboJPEG, to the same bits as by Pillow."""

    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("subsampling", [0, 1, 2])
    @pytest.mark.parametrize("quality", [20, 90])
    @pytest.mark.parametrize("size", [(1, 1), (17, 30), (64, 64), (251, 130)])
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_have_the_bits_of_pillow(
        self, mode: str, size: tuple[int, int], quality: int, subsampling: int, progressive: bool
    ) -> None:
        options = {"quality": quality, "progressive": progressive, "subsampling": subsampling}
        image = encode(noise(*size).convert(mode), "JPEG", **options)
        for contract in (PixelContract(8, 8, 3), PixelContract(8, 8, 1), PixelContract(*size[::-1], 3)):
            assert np.array_equal(decode_image(image, contract, Limits()), decode_by_pillow(image, contract))

    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_with_an_orientation_have_the_bits_of_pillow(self, mode: str, orientation: int) -> None:
        image = encode(noise(60, 41).convert(mode), "JPEG", exif=exif((ORIENTATION, 3, 1, orientation)))
        for contract in (PixelContract(8, 8, 3), PixelContract(8, 8, 1), PixelContract(60, 41, 3)):
            assert np.array_equal(decode_image(image, contract, Limits()), decode_by_pillow(image, contract))

    def test_stored_as_rgb_have_the_bits_of_pillow(self) -> None:
        image = encode(noise(60, 41), "JPEG", keep_rgb=True)
        for contract in (PixelContract(8, 8, 3), PixelContract(8, 8, 1), PixelContract(41, 60, 3)):
            assert np.array_equal(decode_image(image, contract, Limits()), decode_by_pillow(image, contract))

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("orientation", [0, 6])
    def test_are_not_opened_by_pillow(self, mode: str, orientation: int) -> None:
        options = {"exif": exif((ORIENTATION, 3, 1, orientation))} if orientation else {}
        image = encode(noise(8, 8).convert(mode), "JPEG", **options)
        with patch.dict("evalmode.images.pixels.CODECS", clear=True):
            assert decode_whole(image, 3, Limits()).shape == (8, 8, 3)
            assert probe_image(image, Limits()).channels == (1 if mode == "L" else 3)

    def test_with_sampling_factors_without_a_name_in_simplejpeg_are_read(self) -> None:
        image = bytearray(encode(noise(64, 64), "JPEG", subsampling=0))
        image[image.index(b"\xff\xc0") + 11] = 0x14
        assert probe_image(bytes(image), Limits()) == PixelContract(64, 64, 3)


class TestSize:
    @pytest.mark.parametrize("image_format", ["PNG", "BMP", "WEBP"])
    def test_of_the_model_keeps_every_bit(self, image_format: str) -> None:
        options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
        pixels = decode(encode(Image.fromarray(NOISE), image_format, **options))
        assert np.array_equal(pixels, NOISE)
        assert pixels.dtype == np.uint8

    def test_of_the_model_keeps_every_bit_in_grey(self) -> None:
        assert np.array_equal(decode(encode(Image.fromarray(NOISE[:, :, 0])), GREY), NOISE[:, :, :1])

    @pytest.mark.parametrize("size", [(20, 4), (4, 20)])
    def test_with_one_side_of_the_model_is_cropped_to_the_centre(self, size: tuple[int, int]) -> None:
        width, height = size
        left, top = (width - 4) // 2, (height - 4) // 2
        picture = plain("red", size)
        picture.paste(Image.fromarray(NOISE), (left, top))
        assert np.array_equal(decode(encode(picture)), NOISE)

    @pytest.mark.parametrize(
        ("size", "resized", "crop"),
        [
            ((32, 8), (16, 4), (6, 0, 10, 4)),
            ((8, 32), (4, 16), (0, 6, 4, 10)),
            ((60, 20), (12, 4), (4, 0, 8, 4)),
            ((8, 8), (4, 4), (0, 0, 4, 4)),
            ((2, 2), (4, 4), (0, 0, 4, 4)),  # enlarged
        ],
    )
    def test_of_another_image_is_resized_by_the_shorter_side_and_cropped(
        self, size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int, int, int]
    ) -> None:
        picture = noise(*size)
        expected = picture.resize(resized, Image.Resampling.BILINEAR).crop(crop)
        assert np.array_equal(decode(encode(picture)), np.asarray(expected))

    @pytest.mark.parametrize(
        ("size", "box"),
        [
            ((9, 4), (2.5, 0, 6.5, 4)),
            ((4, 7), (0, 1.5, 4, 5.5)),
            ((97, 61), (18, 0, 79, 61)),
            ((10, 9), (0.5, 0, 9.5, 9)),
        ],
    )
    def test_of_another_image_is_cropped_to_a_fraction_of_a_pixel(
        self, size: tuple[int, int], box: tuple[float, float, float, float]
    ) -> None:
        picture = noise(*size)
        expected = picture.resize((4, 4), Image.Resampling.BILINEAR, box=box)
        assert np.array_equal(decode(encode(picture)), np.asarray(expected))

    def test_of_a_model_that_is_not_square_keeps_the_aspect_ratio(self) -> None:
        picture = plain("red", (60, 60))
        # The middle third is kept; the resize filter reads some rows around it.
        picture.paste((0, 255, 0), (0, 10, 60, 50))
        pixels = decode(encode(picture), PixelContract(2, 6, 3))
        assert np.array_equal(pixels, np.full((2, 6, 3), (0, 255, 0), np.uint8))

    @pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (1, 1), (1, 2), (4095, 3)])
    @pytest.mark.parametrize("contract", [RGB, PixelContract(2, 9, 3), PixelContract(9, 2, 1)], ids=str)
    def test_of_any_aspect_ratio_becomes_that_of_the_model(
        self, size: tuple[int, int], contract: PixelContract
    ) -> None:
        assert np.array_equal(decode(encode(plain("white", size)), contract), np.full(contract.shape, 255, np.uint8))


class TestRejections:
    """``decode_image`` and ``probe_image`` reject the same images, with facts."""

    @pytest.fixture(params=[decode_image, lambda image, _, limits: probe_image(image, limits)], ids=["decode", "probe"])
    def open_image(self, request: pytest.FixtureRequest):
        return lambda image, **limits: request.param(image, RGB, Limits(**limits))

    def test_of_no_bytes(self, open_image) -> None:
        with pytest.raises(ImageEmpty, match="0 bytes"):
            open_image(b"")

    def test_of_too_many_bytes(self, open_image) -> None:
        image = encode(plain("red"))
        with pytest.raises(ImageTooLarge, match=f"{len(image)} bytes, the limit is {len(image) - 1}") as caught:
            open_image(image, max_image_bytes=len(image) - 1)
        assert caught.value.facts == {"size_bytes": str(len(image)), "limit_bytes": str(len(image) - 1)}
        open_image(image, max_image_bytes=len(image))

    def test_of_too_many_pixels(self, open_image) -> None:
        with pytest.raises(ImageTooManyPixels, match="5x7 = 35 pixels, the limit is 34") as caught:
            open_image(encode(plain("red", (5, 7))), max_image_pixels=34)
        assert caught.value.facts == {"pixels": "35", "limit_pixels": "34"}
        open_image(encode(plain("red", (5, 7))), max_image_pixels=35)

    @pytest.mark.parametrize(
        "size",
        [(7072, 7071), (10_000, 9_000), (13_400, 13_400), (20_000, 20_000), (2**31 - 1, 2**31 - 1)],
        ids=[
            "over the limit",
            "where Pillow warns",
            "below the limit of Pillow",
            "over the limit of Pillow",
            "largest",
        ],
    )
    def test_of_too_many_pixels_by_the_header_alone(self, open_image, size: tuple[int, int]) -> None:
        with pytest.raises(ImageTooManyPixels, match="50000000") as caught:
            open_image(png(*size, 8, 2, rows=None) + chunk(b"IDAT", b""))
        assert caught.value.facts["limit_pixels"] == "50000000"

    @pytest.mark.parametrize(
        "image",
        [b"an ordinary line of text", b"\0" * 100, b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"%PDF-1.7"],
        ids=["text", "zeros", "svg", "pdf"],
    )
    def test_of_other_files(self, open_image, image: bytes) -> None:
        with pytest.raises(ImageUnreadable, match="not an image"):
            open_image(image)

    @pytest.mark.parametrize("image_format", ["GIF", "TIFF", "ICO", "PPM"])
    def test_of_an_unsupported_format(self, open_image, image_format: str) -> None:
        with pytest.raises(ImageFormatNotAllowed, match=f"{image_format} .*JPEG, PNG, WEBP, BMP") as caught:
            open_image(encode(plain("red", (16, 16)), image_format))
        assert caught.value.facts == {"format": image_format, "allowed": "JPEG, PNG, WEBP, BMP"}

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP"])
    def test_of_a_file_truncated_to_its_first_bytes(self, open_image, image_format: str) -> None:
        image = encode(plain("red"), image_format)
        for length in range(1, 24):
            with pytest.raises(ImageError):
                open_image(image[:length])

    def test_of_a_single_byte(self, open_image) -> None:
        for first in range(256):
            with pytest.raises(ImageError):
                open_image(bytes([first]))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_truncated_image_is_rejected(image_format: str) -> None:
    image = encode(noise(64, 64), image_format)
    for length in (len(image) // 2, len(image) * 9 // 10):
        with pytest.raises(ImageUnreadable):
            decode(image[:length])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # from the comparison with Pillow
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_damaged_image_yields_pixels_or_an_image_error(image_format: str) -> None:
    rng = random.Random(image_format)
    picture = noise(24, 20)
    valid = [encode(picture, image_format), encode(picture, image_format, exif=exif((ORIENTATION, 3, 1, 6)))]
    rejected = 0
    for _ in range(75):
        damaged = bytearray(rng.choice(valid))
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            pixels = decode(bytes(damaged))
        except ImageError:
            rejected += 1
        else:
            assert pixels.shape == (4, 4, 3)
            assert pixels.dtype == np.uint8
            with Image.open(io.BytesIO(damaged)) as opened:
                opened.load()  # an image that Pillow rejects is never decoded in part
    assert rejected > 0


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("missing_bytes", [60, 300])
def test_an_image_without_its_end_is_rejected(image_format: str, missing_bytes: int) -> None:
    image = encode(noise(48, 48), image_format)
    with pytest.raises(ImageUnreadable):
        decode(image[:-missing_bytes], PixelContract(48, 48, 3))


class TestDamage:
    """Damage that the decoder of a format can detect is rejected; docs/reference/images.md has the table."""

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("orientation", [1, 6])
    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("side", [64, 1100])
    def test_zeros_in_the_scan_of_a_jpeg_are_rejected(
        self, mode: str, orientation: int, progressive: bool, side: int
    ) -> None:
        whole = encode(
            noise(side, side).convert(mode),
            "JPEG",
            progressive=progressive,
            exif=exif((ORIENTATION, 3, 1, orientation)),
        )
        damaged = bytearray(whole)
        start = len(whole) // 2
        damaged[start : start + 400] = bytes(400)
        for contract in (RGB, GREY, PixelContract(side, side, 3)):
            assert decode(whole, contract).shape == contract.shape
            with pytest.raises(ImageUnreadable, match="truncated or damaged: Corrupt JPEG data"):
                decode(bytes(damaged), contract)
        with pytest.raises(ImageUnreadable):
            decode_whole(bytes(damaged), 3, Limits())

    def test_images_that_the_library_of_their_format_reports_as_corrupt_are_rejected(self) -> None:
        """The short form of benchmarks/soak/damage.py."""
        corrupt = [one for one in make_damaged(300, sides=(32, 60, 150)) if one.is_corrupt()]
        assert {one.format for one in corrupt} == set(FORMATS)
        assert {one.damage for one in corrupt} == set(DAMAGES)
        assert [(one.format, one.damage) for one in corrupt if not one.is_refused()] == []

    @pytest.mark.parametrize("size", [(48, 48), (1200, 1000)])
    def test_a_jpeg_with_known_errors_in_its_header_is_decoded(self, size: tuple[int, int]) -> None:
        image = encode(noise(*size), "JPEG")
        contract = PixelContract(*size[::-1], 3)
        jfif_0 = image.replace(b"JFIF\0\1", b"JFIF\0\0", 1)  # JFIF 0.01, as some editors write it
        start = image.index(b"\xff\xda") + 11
        assert image[start : start + 3] == b"\0\x3f\0"
        # A baseline scan of the coefficients 0 to 0, as some encoders of Samsung write it.
        empty_range = image[:start] + bytes(3) + image[start + 3 :]
        both = jfif_0[:start] + bytes(3) + jfif_0[start + 3 :]
        for known in (jfif_0, empty_range, both, image + b"a trailer"):
            assert np.array_equal(decode(known, contract), decode(image, contract))
            with pytest.raises(ImageUnreadable):
                decode(known[: -len(image) // 2], contract)
        with pytest.raises(ImageUnreadable, match="4 extraneous bytes before marker"):
            decode(image[:20] + b"junk" + image[20:], contract)

    @pytest.mark.parametrize("size", [(48, 48), (1200, 1000)])
    def test_a_progressive_jpeg_of_an_old_encoder_is_decoded(self, size: tuple[int, int]) -> None:
        """Its first scan has the coefficients 0 to 0, with all of their bits."""
        image = encode(noise(*size), "JPEG", progressive=True)
        scan = image.index(b"\xff\xda")
        assert image[scan + 11 : scan + 14] == b"\0\0\1"
        image = image[: scan + 13] + b"\0" + image[scan + 14 : image.index(b"\xff\xc4", scan)] + b"\xff\xd9"
        contract = PixelContract(*size[::-1], 3)
        jfif_0 = image.replace(b"JFIF\0\1", b"JFIF\0\0", 1)
        assert np.array_equal(decode(jfif_0, contract), decode(image, contract))

    @pytest.mark.parametrize("subsampling", [0, 1, 2])
    @pytest.mark.parametrize("component", [0, 1, 2])
    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    @pytest.mark.parametrize("zeroed", [0, 400])
    def test_a_flipped_bit_in_the_sampling_factors_of_a_jpeg_is_rejected(
        self, mode: str, component: int, subsampling: int, zeroed: int
    ) -> None:
        """Pillow decodes factors such as 3x2 and hides the warning of libjpeg-turbo."""
        whole = encode(noise(96, 96).convert(mode), "JPEG", subsampling=subsampling)
        damaged = bytearray(whole)
        damaged[len(whole) // 2 : len(whole) // 2 + zeroed] = bytes(zeroed)
        place = whole.index(b"\xff\xc0") + 11 + 3 * component
        for bit in range(8):
            damaged[place] = whole[place] ^ 1 << bit
            for contract in (RGB, GREY, PixelContract(96, 96, 3)):
                with pytest.raises(ImageUnreadable):
                    decode(bytes(damaged), contract)

    @pytest.mark.parametrize("factors", [0x32, 0x23, 0x31, 0x13, 0x42, 0x24])
    def test_unsupported_sampling_factors_are_rejected_by_name(self, factors: int) -> None:
        image = bytearray(encode(noise(64, 64), "JPEG"))
        image[image.index(b"\xff\xc0") + 11] = factors
        message = f"{factors >> 4}x{factors & 15}, 1x1, 1x1, which are not decoded; if .* save it again"
        with pytest.raises(ImageUnreadable, match=message):
            decode(bytes(image))

    @pytest.mark.parametrize("length", [*range(1, 13), 40])
    def test_a_png_without_its_end_is_rejected(self, length: int) -> None:
        image = encode(noise(48, 48))
        with pytest.raises(ImageUnreadable, match=r"without its end|chunk at byte"):
            decode(image[:-length])

    @pytest.mark.parametrize("name", [b"tEXt", b"IEND"])
    def test_a_wrong_checksum_after_the_pixels_of_a_png_is_rejected(self, name: bytes) -> None:
        image = encode(noise(48, 48))
        image = image[:-12] + chunk(b"tEXt", b"Comment\0text") + image[-12:]
        damaged = bytearray(image)
        damaged[image.index(name) + len(name) - (name == b"IEND") + 2] ^= 1
        assert decode(image).shape == (4, 4, 3)
        with pytest.raises(ImageUnreadable, match="checksum of the chunk"):
            decode(bytes(damaged))

    @pytest.mark.parametrize("options", [{"lossless": True}, {}, {"exif": exif((ORIENTATION, 3, 1, 6))}])
    def test_a_webp_without_its_last_bytes_is_rejected(self, options: dict) -> None:
        image = encode(noise(48, 48), "WEBP", **options)
        for length in (1, 2, 10, len(image) // 2):
            with pytest.raises(ImageUnreadable):
                decode(image[:-length])

    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
    def test_a_bmp_without_its_last_byte_is_rejected(self, mode: str) -> None:
        image = encode(noise(64, 48).convert(mode), "BMP")
        with pytest.raises(ImageUnreadable):
            decode(image[:-1])


class TestMetadata:
    """Metadata of any size are accepted, and their orientation is applied."""

    @pytest.mark.parametrize(
        "metadata",
        [
            chunk(b"tEXt", b"Comment\0" + bytes(2**21)),
            chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21))),
            chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**21))),
            chunk(b"tEXt", b"XML:com.adobe.xmp\0" + bytes(2**21)),
            chunk(b"tEXt", b"Raw profile type exif\0" + bytes(2**21)),
            chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2**25))),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**25))),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0not deflated"),
            chunk(b"eXIf", exif((ORIENTATION, 3, 1, 1))[6:] + bytes(2**21)),
        ],
        ids=["text", "packed text", "profile", "xmp", "exif as text", "packed exif", "packed xmp", "no xmp", "exif"],
    )
    def test_of_megabytes_do_not_affect_the_pixels(self, metadata: bytes) -> None:
        image = encode(Image.fromarray(NOISE))
        for marked in (image[:33] + metadata + image[33:], image[:-12] + metadata + image[-12:]):
            assert np.array_equal(decode(marked), NOISE)
            assert probe_image(marked, Limits()) == RGB

    def test_of_megabytes_have_an_orientation(self) -> None:
        image = encode(Image.fromarray(NOISE))
        xmp = b'<x tiff:Orientation="6"/>' + bytes(2**21)
        for metadata in (
            chunk(b"eXIf", exif((ORIENTATION, 3, 1, 6))[6:] + bytes(2**21)),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
            chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(xmp)),
            chunk(b"tEXt", b"XML:com.adobe.xmp\0" + xmp),
        ):
            marked = image[:33] + metadata + image[33:]
            assert np.array_equal(decode(marked), np.rot90(NOISE, -1))


def ftyp(*brands: bytes) -> bytes:
    return struct.pack(">I", 12 + 4 * len(brands)) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:]) + bytes(64)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (ftyp(b"heic", b"mif1", b"heic"), "HEIC"),
        (ftyp(b"mif1", b"miaf", b"heix"), "HEIC"),
        (ftyp(b"msf1", b"hevc"), "HEIC"),
        (ftyp(b"avif", b"mif1", b"miaf"), "AVIF"),
        (ftyp(b"mif1", b"avif", b"miaf"), "AVIF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
    ],
)
def test_newer_formats_are_rejected_by_name_with_a_remedy(image: bytes, name: str) -> None:
    with pytest.raises(
        ImageFormatNotAllowed, match=f"{name} images are not supported: convert the image to one of JPEG"
    ) as caught:
        decode(image)
    assert caught.value.facts["format"] == name
    assert ("Most Compatible" in str(caught.value)) == (name == "HEIC")


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "JPEG"])
def test_the_limit_of_pillow_on_pixels_is_not_used(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns above the limit and fails above twice the limit
    for side in (11, 40):
        image = encode(noise(side, side), image_format)
        assert decode(image).shape == (4, 4, 3)
        assert probe_image(image, Limits()).height == side


@pytest.mark.parametrize("image", [b"\0\0\0\x18ftypmp42" + bytes(20), b"\0\0\0\x08ftyp", b"\xff\xff\xff\xffftypabcd"])
def test_a_video_is_rejected(image: bytes) -> None:
    with pytest.raises(ImageUnreadable, match="not an image"):
        decode(image)


def test_a_png_with_a_wrong_checksum_is_rejected() -> None:
    image = bytearray(encode(noise(48, 48)))
    image[len(image) // 2] ^= 1
    with pytest.raises(ImageUnreadable):
        decode(bytes(image), PixelContract(48, 48, 3))


class TestProbe:
    @pytest.mark.parametrize(
        ("picture", "channels"),
        [
            (plain("red", (5, 3)), 3),
            (plain(1, (5, 3), "P"), 3),
            (plain((1, 2, 3, 4), (5, 3), "RGBA"), 3),
            (plain(1, (5, 3), "L"), 1),
            (plain((1, 2), (5, 3), "LA"), 1),
            (plain(1, (5, 3), "1"), 1),
            (plain(1, (5, 3), "I;16"), 1),
        ],
        ids=lambda value: getattr(value, "mode", value),
    )
    def test_reads_shape_and_channels(self, picture: Image.Image, channels: int) -> None:
        assert probe_image(encode(picture), Limits()) == PixelContract(3, 5, channels)

    @pytest.mark.parametrize("image_format", ["JPEG", "BMP"])  # the orientation of a PNG may follow its pixels
    def test_needs_only_the_header(self, image_format: str) -> None:
        image = encode(noise(50, 30), image_format)
        cut = image[: len(image) * 3 // 4]
        assert probe_image(cut, Limits()) == PixelContract(30, 50, 3)
        with pytest.raises(ImageUnreadable):
            decode(cut)


class TestCheckPixels:
    def test_shares_the_memory_of_its_bytes(self) -> None:
        data = NOISE.tobytes()
        pixels = check_pixels(data, (4, 4, 3), RGB)
        assert np.array_equal(pixels, NOISE)
        assert np.shares_memory(pixels, np.frombuffer(data, np.uint8))

    @pytest.mark.parametrize("shape", [(4, 4, 1), (3, 4, 3), (3, 4, 4), (2, 8, 3), (0, 0, 0), (2**32 - 1,) * 3])
    def test_rejects_another_shape(self, shape: tuple[int, int, int]) -> None:
        shape_text = "x".join(map(str, shape))
        with pytest.raises(PixelsMismatch, match=f"are {shape_text}, the model wants 4x4x3") as caught:
            check_pixels(NOISE.tobytes(), shape, RGB)
        assert caught.value.facts == {"shape": shape_text, "wanted_shape": "4x4x3"}

    @pytest.mark.parametrize("size_bytes", [0, 47, 49, 192])
    def test_rejects_another_number_of_bytes(self, size_bytes: int) -> None:
        with pytest.raises(PixelsMismatch, match=f"4x4x3 are 48 bytes of uint8, got {size_bytes}") as caught:
            check_pixels(bytes(size_bytes), (4, 4, 3), RGB)
        assert caught.value.facts == {"size_bytes": str(size_bytes), "wanted_bytes": "48"}


def test_the_shape_of_a_contract_is_height_width_channels() -> None:
    assert PixelContract(2, 9, 3).shape == (2, 9, 3)
