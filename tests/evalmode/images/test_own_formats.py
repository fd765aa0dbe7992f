"""Formats that are decoded from the user's own files, and not by a server: GIF, TIFF, AVIF and HEIC."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import AvifImagePlugin, GifImagePlugin, Image, TiffImagePlugin

from evalmode.errors import (
    ImageError,
    ImageFormatNotAllowed,
    ImageTooComplex,
    ImageTooManyPixels,
    ImageUnreadable,
)
from evalmode.images.formats import FORMATS, SERVED_FORMATS
from evalmode.images.headers import read_header
from evalmode.images.pixels import PixelContract, decode_image, decode_whole, probe_image
from evalmode.limits import Limits
from tests.conftest import encode, plain

PHOTOS = Path(__file__).parent / "photos"
HEIC = (PHOTOS / "bands.heic").read_bytes()
NOISE = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)
ORIENTATION = 0x0112
OWN = {
    "GIF": encode(Image.fromarray(NOISE), "GIF"),
    "TIFF": encode(Image.fromarray(NOISE), "TIFF", compression="tiff_lzw"),
    "AVIF": encode(Image.fromarray(NOISE), "AVIF"),
    "HEIC": HEIC,
}
# EXIF orientation -> the stored form of an upright picture.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    3: lambda upright: upright[::-1, ::-1],
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
}


@pytest.fixture(name="heif")
def _heif() -> Any:
    return pytest.importorskip("pillow_heif", reason="the extra heic is not installed")


def decode(image: bytes, channels: int = 3, **limits: int) -> np.ndarray:
    return decode_whole(image, channels, Limits(**limits), FORMATS)


def damage(image: bytes, which: int, **changes: int) -> bytes:
    """Change an entry of the first directory of a little-endian TIFF: its ``tag``, ``kind``, ``count`` or ``value``."""
    (start,) = struct.unpack_from("<I", image, 4)
    (count,) = struct.unpack_from("<H", image, start)
    changed = bytearray(image)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        entry = dict(zip(("tag", "kind", "count", "value"), struct.unpack_from("<HHII", image, place), strict=True))
        if entry["tag"] == which:
            struct.pack_into("<HHII", changed, place, *(entry | changes).values())
            return bytes(changed)
    raise AssertionError(f"no tag {which}")


class TestEveryFormat:
    @pytest.mark.parametrize("name", OWN)
    def test_is_refused_by_default_and_by_its_name(self, name: str) -> None:
        assert name not in [one.name for one in SERVED_FORMATS]
        with pytest.raises(ImageFormatNotAllowed, match=f"{name} images are not supported: convert .*JPEG") as caught:
            decode_image(OWN[name], PixelContract(4, 4, 3), Limits())
        assert caught.value.facts == {"format": name, "allowed": "JPEG, PNG, WEBP, BMP"}
        with pytest.raises(ImageFormatNotAllowed):
            probe_image(OWN[name], Limits())

    @pytest.mark.parametrize("name", ["GIF", "TIFF", "AVIF"])
    def test_is_refused_if_it_exceeds_a_limit(self, name: str) -> None:
        with pytest.raises(ImageTooManyPixels, match="31x23 = 713 pixels, the limit is 712"):
            decode(OWN[name], max_image_pixels=712)
        assert decode(OWN[name], max_image_pixels=713).shape == (23, 31, 3)

    @pytest.mark.parametrize("name", ["GIF", "TIFF", "AVIF"])
    def test_is_refused_if_it_is_truncated(self, name: str) -> None:
        image = OWN[name]
        for length in (*range(16, 120, 7), len(image) // 2, len(image) - 40):
            with pytest.raises(ImageError):
                decode(image[:length])

    def test_is_resized_like_the_others(self) -> None:
        contract = PixelContract(8, 8, 3)
        as_png = decode_image(encode(Image.fromarray(NOISE)), contract, Limits())
        assert np.array_equal(decode_image(OWN["TIFF"], contract, Limits(), FORMATS), as_png)

    def test_is_refused_if_its_size_changes_while_it_is_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        load = AvifImagePlugin.AvifImageFile.load

        def change_size(self: AvifImagePlugin.AvifImageFile) -> None:  # as libheif does with some damaged files
            load(self)
            self._size = (30, 23)

        monkeypatch.setattr(AvifImagePlugin.AvifImageFile, "load", change_size)
        with pytest.raises(ImageUnreadable, match="it has two sizes"):
            decode(OWN["AVIF"])

    @pytest.mark.parametrize("name", ["GIF", "TIFF", "AVIF"])
    def test_is_probed_like_it_is_decoded(self, name: str) -> None:
        assert probe_image(OWN[name], Limits(), FORMATS).shape == (23, 31, 3)


class TestGif:
    def test_has_its_pixels(self) -> None:
        few = Image.fromarray(NOISE).quantize(200)
        assert np.array_equal(decode(encode(few, "GIF")), np.asarray(few.convert("RGB")))

    def test_of_grey_has_its_pixels(self) -> None:
        assert np.array_equal(decode(encode(Image.fromarray(NOISE[:, :, 0]), "GIF"), 1), NOISE[:, :, :1])

    def test_shows_the_first_frame_of_an_animation(self) -> None:
        frames = [plain(colour, (6, 5)) for colour in ("red", "lime", "blue")]
        image = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert np.array_equal(decode(image), np.full((5, 6, 3), (255, 0, 0), np.uint8))

    def test_with_a_transparent_colour_is_composited_over_white(self) -> None:
        picture = plain(1, (6, 5), "P")
        picture.putpalette([10, 20, 30, 200, 100, 50])
        picture.paste(0, (0, 0, 3, 5))
        pixels = decode(encode(picture, "GIF", transparency=0))
        assert np.array_equal(pixels[:, :3], np.full((5, 3, 3), 255, np.uint8))
        assert np.array_equal(pixels[:, 3:], np.full((5, 3, 3), (200, 100, 50), np.uint8))

    def test_is_decoded_without_its_comments_and_later_frames(self, monkeypatch: pytest.MonkeyPatch) -> None:
        frames = [plain(colour, (6, 5)) for colour in ("red", "lime")]
        image = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], comment=b"x" * 2000)
        seen: list[bytes] = []
        monkeypatch.setattr(GifImagePlugin.GifImageFile, "_open", spy(GifImagePlugin.GifImageFile._open, seen))
        decode(image)
        assert seen
        assert all(b"xxxx" not in one for one in seen)

    def test_with_too_many_blocks_before_its_pixels_is_refused(self) -> None:
        image = encode(plain("red"), "GIF")
        start = 13 + (3 << (image[10] & 7) + 1)
        comment = b"!\xfe" + b"\x01x" * 20_001 + b"\0"
        with pytest.raises(ImageTooComplex, match="20000 blocks before its first frame"):
            decode(image[:start] + comment + image[start:])
        comment = b"!\xfe" + b"\x01x" * 10_000 + b"\0"
        assert decode(image[:start] + comment + image[start:]).shape == (4, 4, 3)

    def test_with_a_frame_larger_than_its_screen_is_limited_by_its_frame(self) -> None:
        image = bytearray(encode(plain("red"), "GIF"))
        start = 13 + (3 << (image[10] & 7) + 1)
        struct.pack_into("<HH", image, start + 5, 60_000, 60_000)
        with pytest.raises(ImageTooManyPixels, match="60000x60000"):
            decode(bytes(image))

    def test_without_the_end_of_its_first_frame_is_refused(self) -> None:
        with pytest.raises(ImageUnreadable, match="ends in its first frame"):
            decode(OWN["GIF"][:-2])
        assert np.array_equal(decode(OWN["GIF"][:-1]), decode(OWN["GIF"]))  # the trailer says nothing about pixels


def spy(function: Callable[[Any], None], seen: list[bytes]) -> Callable[[Any], None]:
    """Record the bytes that a class of Pillow opens."""

    def opened(self: Any) -> None:
        seen.append(self.fp.getvalue())
        function(self)

    return opened


class TestTiff:
    @pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"])
    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBX"])
    def test_has_its_pixels(self, mode: str, compression: str | None) -> None:
        picture = Image.fromarray(NOISE).convert(mode)
        assert np.array_equal(
            decode(encode(picture, "TIFF", compression=compression)), np.asarray(picture.convert("RGB"))
        )

    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("compression", [None, "tiff_lzw"])
    def test_is_turned_upright(self, compression: str | None, orientation: int) -> None:
        stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](NOISE)))
        image = encode(stored, "TIFF", compression=compression, tiffinfo={ORIENTATION: orientation})
        assert np.array_equal(decode(image), NOISE)
        assert probe_image(image, Limits(), FORMATS).shape == NOISE.shape

    @pytest.mark.parametrize("options", [{"big_tiff": True}, {"strip_size": 200}])
    def test_of_64_bits_and_of_many_strips_has_its_pixels(self, options: dict[str, Any]) -> None:
        for compression in (None, "tiff_lzw"):
            image = encode(Image.fromarray(NOISE), "TIFF", compression=compression, **options)
            assert np.array_equal(decode(image), NOISE)

    def test_in_big_endian_order_has_its_pixels(self) -> None:
        grey = NOISE[:, :, 0]
        assert np.array_equal(decode(write_big_endian(grey), 1), grey[:, :, np.newaxis])

    def test_with_transparency_is_composited_over_white(self) -> None:
        pixels = decode(encode(plain((255, 0, 0, 128), mode="RGBA"), "TIFF"))
        assert np.array_equal(pixels, np.full((4, 4, 3), (255, 127, 127), np.uint8))

    def test_of_a_palette_bilevel_or_cmyk_is_converted(self) -> None:
        palette = Image.fromarray(NOISE).quantize(20)
        assert np.array_equal(decode(encode(palette, "TIFF")), np.asarray(palette.convert("RGB")))
        bilevel = Image.fromarray(NOISE).convert("1")
        assert np.array_equal(decode(encode(bilevel, "TIFF", compression="group4")), np.asarray(bilevel.convert("RGB")))
        cmyk = encode(plain((0, 255, 255, 0), mode="CMYK"), "TIFF")
        assert np.array_equal(decode(cmyk), np.full((4, 4, 3), (255, 0, 0), np.uint8))

    @pytest.mark.parametrize("mode", ["I;16", "I;16B"])
    def test_of_sixteen_bit_grey_is_divided_by_257(self, mode: str) -> None:
        wide = np.array([[0, 128, 129, 257], [65535, 65406, 65407, 257 * 200]], np.uint16)
        picture = Image.fromarray(wide)
        image = encode(picture, "TIFF")
        assert decode(image, 1).ravel().tolist() == [0, 0, 1, 1, 255, 254, 255, 200]

    def test_of_several_pages_is_its_first(self) -> None:
        image = encode(plain("red"), "TIFF", save_all=True, append_images=[plain("blue", (8, 8))])
        assert np.array_equal(decode(image), np.full((4, 4, 3), (255, 0, 0), np.uint8))

    @pytest.mark.parametrize("mode", ["F", "I"])
    def test_of_32_bit_values_is_refused(self, mode: str) -> None:
        with pytest.raises(ImageFormatNotAllowed, match=r"TIFF with samples .* is not supported: save it"):
            decode(encode(Image.new(mode, (4, 4)), "TIFF"))

    def test_of_another_colour_space_or_compression_is_refused(self) -> None:
        image = encode(plain("red"), "TIFF")
        with pytest.raises(ImageFormatNotAllowed, match="colour space 8 is not supported"):
            decode(damage(image, 262, value=8))
        with pytest.raises(ImageFormatNotAllowed, match="compression 34712 is not supported"):
            decode(damage(image, 259, value=34712))

    def test_is_opened_without_metadata_and_further_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[Any] = []
        setup = TiffImagePlugin.TiffImageFile._setup

        def note(self: Any) -> None:
            opened.append(self)
            setup(self)

        monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "_setup", note)
        pages = {"save_all": True, "append_images": [plain("blue")]}
        decode(encode(plain("red"), "TIFF", tiffinfo={270: "text", 700: b"xmp", ORIENTATION: 3}, **pages))
        (picture,) = opened
        assert not {270, 700, ORIENTATION} & {*picture.tag_v2}
        assert not picture.is_animated

    def test_with_too_few_strips_is_refused(self) -> None:
        image = encode(Image.fromarray(NOISE), "TIFF", compression="tiff_lzw", strip_size=500)
        with pytest.raises(ImageUnreadable, match="a TIFF of 4 strips, its rows need 5"):
            decode(damage(image, 273, count=4))

    def test_with_huge_tiles_is_refused(self) -> None:
        image = encode(Image.fromarray(NOISE), "TIFF")
        tiled = damage(image, 273, tag=324)
        tiled = damage(tiled, 278, tag=322, kind=4, value=60_000)
        tiled = damage(tiled, 279, tag=323, value=60_000)
        with pytest.raises(ImageTooManyPixels, match="60000x60000"):
            decode(tiled)

    def test_with_too_many_tags_is_refused(self) -> None:
        image = b"II*\0\x08\0\0\0" + struct.pack("<H", 1001) + bytes(1001 * 12 + 4)
        with pytest.raises(ImageTooComplex, match="a TIFF of 1001 tags, the limit is 1000"):
            decode(image)

    @pytest.mark.parametrize("offset", [16, 500, 2**31, 2**63, 2**64 - 1])
    def test_with_a_directory_beyond_its_end_is_refused(self, offset: int) -> None:
        with pytest.raises(ImageUnreadable, match="ends in its header"):
            decode(b"II+\0\x08\0\0\0" + struct.pack("<Q", offset))

    def test_with_two_sizes_has_its_first(self) -> None:
        """A second entry of a tag is not read by anybody."""
        image = encode(plain("red"), "TIFF")
        two = damage(image, 284, tag=256, kind=3, count=1, value=40_000)
        assert np.array_equal(decode(two), decode(image))


def write_big_endian(grey: np.ndarray) -> bytes:
    """A TIFF of one strip, big endian, which Pillow does not write."""
    height, width = grey.shape
    shorts = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1))
    packed = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in shorts)
    directory = struct.pack(">H", len(shorts)) + packed + bytes(4)
    return b"MM\0*" + struct.pack(">I", 8 + grey.size) + grey.tobytes() + directory


class TestAvif:
    def test_has_the_pixels_of_pillow(self) -> None:
        with AvifImagePlugin.AvifImageFile(io.BytesIO(OWN["AVIF"])) as opened:
            assert np.array_equal(decode(OWN["AVIF"]), np.asarray(opened.convert("RGB")))

    @pytest.mark.parametrize("orientation", STORED)
    def test_is_turned_upright(self, orientation: int) -> None:
        bands = make_bands()
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](bands)))
        pixels = decode(encode(stored, "AVIF", exif=exif, quality=95))
        assert pixels.shape == bands.shape
        assert np.abs(pixels.astype(int) - bands).mean() < 5

    def test_with_transparency_is_composited_over_white(self) -> None:
        pixels = decode(encode(plain((255, 0, 0, 128), (16, 16), "RGBA"), "AVIF", quality=100))
        assert np.abs(pixels.astype(int) - (255, 127, 127)).max() < 5

    def test_without_libavif_is_refused_with_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
        with pytest.raises(ImageFormatNotAllowed, match=r"built without libavif, .*: convert the image to one of JPEG"):
            decode(OWN["AVIF"])


class TestHeic:
    def test_without_pillow_heif_is_refused_with_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        message = r"pip install 'evalmode\[heic\]', or: convert the image to one of JPEG, .*Most Compatible"
        with pytest.raises(ImageFormatNotAllowed, match=message):
            decode(HEIC)

    @pytest.mark.usefixtures("heif")
    @pytest.mark.parametrize("name", ["bands", "bands-turned", "bands-half-transparent"])
    def test_has_its_pixels_upright_and_over_white(self, name: str) -> None:
        bands = make_bands().astype(int)
        expected = (bands + 255) // 2 if "transparent" in name else bands
        image = (PHOTOS / f"{name}.heic").read_bytes()
        pixels = decode(image)
        assert probe_image(image, Limits(), FORMATS).shape == pixels.shape == expected.shape
        assert np.abs(pixels - expected).mean() < 3

    @pytest.mark.usefixtures("heif")
    def test_is_refused_if_it_is_too_large_or_truncated(self) -> None:
        with pytest.raises(ImageTooManyPixels, match="64x48 = 3072 pixels, the limit is 3071"):
            decode(HEIC, max_image_pixels=3071)
        for length in (20, 100, 300, 600, len(HEIC) - 10):
            with pytest.raises(ImageError):
                decode(HEIC[:length])


def make_bands() -> np.ndarray:
    """The picture of ``photos``: red, blue on its right half, green on its upper quarter."""
    bands = np.full((48, 64, 3), (200, 30, 30), np.uint8)
    bands[:, 32:] = (30, 30, 200)
    bands[:12] = (30, 200, 30)
    return bands


@pytest.mark.parametrize("name", ["GIF", "TIFF", "AVIF"])
def test_the_reserved_memory_covers_the_picture(name: str) -> None:
    image = OWN[name]
    assert read_header(image, Limits(), FORMATS).decoder_bytes >= NOISE.shape[0] * NOISE.shape[1] + len(image)
