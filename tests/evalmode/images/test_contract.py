"""The rules of the pixel contract beyond the usual ones. Other libraries are compared in test_other_libraries.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evalmode.errors import ImageSizeMismatch, UsageError
from evalmode.images.contract import PixelContract, Resize
from evalmode.images.headers import read_header
from evalmode.images.pixels import decode_image, order_channels, scale_header
from evalmode.images.resizing import plan_letterbox
from evalmode.images.sampling import sample
from evalmode.limits import OWN_IMAGES, Limits
from tests.conftest import encode, plain

NONE, SQUASH, BOXED = Resize(mode="none"), Resize(mode="squash"), Resize(mode="letterbox")
SIDEWAYS = 6


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


class TestNone:
    @pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
    def test_refuses_another_size_before_and_after_the_orientation(self, image_format: str) -> None:
        contract = PixelContract(6, 9, 3, NONE)
        assert decode_image(encode(noise(9, 6), image_format), contract, Limits()).shape == (6, 9, 3)
        upright = encode(noise(6, 9), image_format, exif=turned(SIDEWAYS))
        assert decode_image(upright, contract, Limits()).shape == (6, 9, 3)
        for other in ({}, {"exif": turned(SIDEWAYS)}):
            size = (9, 6) if other else (6, 9)
            with pytest.raises(ImageSizeMismatch, match="image is 6x9 pixels, the model wants exactly 9x6") as caught:
                decode_image(encode(noise(*size), image_format, **other), contract, Limits())
            assert caught.value.facts == {"size": "6x9", "wanted_size": "9x6"}
        with pytest.raises(ImageSizeMismatch, match="image is 90x60 pixels"):
            decode_image(encode(noise(90, 60), image_format), contract, Limits())


class TestLetterbox:
    @pytest.mark.parametrize("size", [(100, 40), (40, 100), (50, 50), (1000, 1), (1, 1)])
    @pytest.mark.parametrize("channels", [3, 1])
    def test_has_the_whole_picture_at_its_centre(self, size: tuple[int, int], channels: int) -> None:
        pixels = decode_image(
            encode(plain("red", size)), PixelContract(21, 31, channels, replace(BOXED, padding=(0, 0, 255))), Limits()
        )
        width, height = plan_letterbox(size, (31, 21))
        red, blue = (
            np.array(Image.new("RGB", (1, 1), colour).convert("RGB" if channels == 3 else "L")).reshape(-1)
            for colour in ("red", "blue")
        )
        wanted = np.full((21, 31, channels), blue, np.uint8)
        top, left = (21 - height) // 2, (31 - width) // 2
        wanted[top : top + height, left : left + width] = red
        assert np.array_equal(pixels, wanted)

    def test_of_a_scaled_jpeg_is_placed_like_that_of_the_whole(self) -> None:
        """At 1/8, 500x321 has 63x41 pixels: 27x18 fit, of the whole 27x17."""
        image = encode(plain("red", (500, 321)), "JPEG")
        scaled = PixelContract(27, 27, 3, BOXED)
        assert scale_header(read_header(image, OWN_IMAGES), scaled).scale == 8
        whole = replace(scaled, resize=replace(BOXED, jpeg_scaling=False))
        assert np.array_equal(decode_image(image, scaled, Limits()), decode_image(image, whole, Limits()))


class TestJpegScale:
    @pytest.mark.parametrize(
        ("resize", "scale"), [(SQUASH, 2), (BOXED, 4), (Resize(), 2), (Resize(0.5, mode="squash"), 1)], ids=str
    )
    def test_leaves_twice_the_size_that_is_resized_to(self, resize: Resize, scale: int) -> None:
        image = encode(plain("red", (128, 64)), "JPEG")
        assert scale_header(read_header(image, OWN_IMAGES), PixelContract(16, 16, 3, resize)).scale == scale

    def test_follows_the_stored_size_if_the_orientation_is_not_applied(self) -> None:
        image = encode(noise(128, 64), "JPEG", exif=turned(SIDEWAYS))
        wide = PixelContract(16, 32, 3, SQUASH)
        assert scale_header(read_header(image, OWN_IMAGES), wide).scale == 1
        assert scale_header(read_header(image, OWN_IMAGES), replace(wide, exif_orientation=False)).scale == 2


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_bgr_is_rgb_in_another_order(image_format: str) -> None:
    image = encode(noise(9, 7), image_format)
    for size in ((7, 9), (5, 5)):
        rgb, bgr = (PixelContract(*size, 3, channel_order=order) for order in ("RGB", "BGR"))
        pixels = decode_image(image, bgr, Limits())
        assert np.array_equal(pixels, decode_image(image, rgb, Limits())[:, :, ::-1])
        assert pixels.flags.c_contiguous
        assert np.array_equal(order_channels(pixels, bgr), decode_image(image, rgb, Limits()))


@pytest.mark.parametrize("resize", [SQUASH, BOXED, Resize(), NONE], ids=str)
def test_an_image_of_the_exact_size_is_only_resized_where_a_crop_follows(resize: Resize) -> None:
    picture = noise(14, 9)
    contract = PixelContract(9, 14, 3, replace(resize, keeps_exact_size=False))
    assert np.array_equal(decode_image(encode(picture), contract, Limits()), np.asarray(picture))


def test_transparency_is_over_the_background_or_ignored() -> None:
    image = encode(Image.new("RGBA", (3, 3), (10, 20, 30, 0)))
    for background, expected in (((1, 2, 3), (1, 2, 3)), ((255, 255, 255), (255, 255, 255)), (None, (10, 20, 30))):
        pixels = decode_image(image, PixelContract(3, 3, 3, background=background), Limits())
        assert np.array_equal(pixels, np.full((3, 3, 3), expected, np.uint8))


class TestSample:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("mode", ["RGB", "RGBX", "L"])
    def test_of_a_plain_picture_is_plain(self, mode: str, interpolation: str) -> None:
        picture = Image.new("RGB", (13, 7), (200, 3, 77)).convert(mode)
        wanted = Image.new("RGB", (5, 29), (200, 3, 77)).convert("L" if mode == "L" else "RGB")
        assert np.array_equal(np.asarray(sample(picture, (5, 29), interpolation)), np.asarray(wanted))

    def test_interpolates_between_the_nearest_pixels(self) -> None:
        row = np.array([[0, 100, 200, 60, 20, 220, 40, 80]], np.uint8)
        assert np.asarray(sample(Image.fromarray(row), (4, 1), "bilinear")).tolist() == [[50, 130, 120, 60]]
        assert np.asarray(sample(Image.fromarray(row), (2, 1), "bilinear")).tolist() == [[150, 130]]


@pytest.mark.parametrize(
    "rules",
    [
        {"mode": "stretch"},
        {"crop_offset": "ceiled"},
        {"padding": (0, 0, 256)},
        {"mode": "letterbox", "crop_ratio": 0.9},
        {"mode": "none", "crop_ratio": 0.9},
        {"antialias": False, "interpolation": "lanczos"},
    ],
    ids=str,
)
def test_a_resize_of_unknown_or_contrary_rules_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"is unknown|is not a colour|does not fit"):
        Resize(**rules)


@pytest.mark.parametrize("rules", [{"channel_order": "GBR"}, {"background": "white"}], ids=str)
def test_a_contract_of_unknown_rules_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"is unknown|is not a colour"):
        PixelContract(4, 4, 3, **rules)


def test_is_described_in_words() -> None:
    usual = PixelContract(4, 4, 3)
    assert usual.describe() == usual.resize.describe()
    assert PixelContract(4, 4, 3, NONE).describe() == "none: images of another size are refused"
    other = Resize(0.5, "bicubic", False, "squash", False, False, crop_offset="floored")
    assert PixelContract(4, 4, 3, other, "BGR", False, None).describe() == (
        "both sides resized to 1/0.5 of the crop, centre cropped at an offset rounded down (bicubic, not antialiased); "
        "images of the exact size, too; channels in the order BGR; EXIF orientation not applied; transparency ignored"
    )
    assert PixelContract(4, 4, 3, BOXED, background=(0, 0, 0)).describe() == (
        "resized to fit, centred, the rest filled with RGB (114, 114, 114) (Pillow, bilinear, antialiased); "
        "large JPEGs decoded at 1/2, 1/4 or 1/8; transparent pixels over RGB (0, 0, 0)"
    )


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((0, 8, 3), "height 0 is not a number of pixels: expected 1 to 65,535"),
        ((8, 65_536, 3), "width 65536 is not a number of pixels"),
        ((8, 8.0, 3), r"width 8\.0 is not a number of pixels"),
        ((8, 8, 4), r"channels 4: expected 3 \(colours\) or 1 \(grey\)"),
    ],
)
def test_the_shape_of_a_contract_is_checked(shape: tuple[int, int, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PixelContract(*shape)
