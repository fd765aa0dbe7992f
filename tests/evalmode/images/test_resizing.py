"""The resize of the pixel contract: the same bits as by Pillow alone, for every interpolation, crop and scale."""

from __future__ import annotations

import io
import random
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from evalmode.errors import ImageError, ImageUnreadable, UsageError
from evalmode.images import sampling
from evalmode.images.headers import read_header
from evalmode.images.pixels import PixelContract, Resize, decode_image, decode_whole, scale_header
from evalmode.images.resizing import INTERPOLATIONS, MAX_ASPECT, MIN_CROP_RATIO, choose_jpeg_scale, plan_resize
from evalmode.images.sampling import sample
from evalmode.limits import OWN_IMAGES, Limits
from tests.by_pillow import decode_by_pillow
from tests.conftest import encode, plain

SIDEWAYS = 6
SIZES = [(160, 97), (97, 160), (64, 64), (13, 40), (5, 7)]


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def find_scale(image: bytes, contract: PixelContract) -> int:
    return scale_header(read_header(image, OWN_IMAGES), contract).scale


class TestResize:
    @pytest.mark.parametrize("crop_ratio", [1.0, 0.875, 0.9, 0.5])
    @pytest.mark.parametrize("interpolation", INTERPOLATIONS)
    def test_has_the_bits_of_pillow(self, interpolation: str, crop_ratio: float) -> None:
        resize = Resize(crop_ratio, interpolation)
        for size in SIZES:
            for image_format in ("PNG", "JPEG"):
                image = encode(noise(*size), image_format)
                for shape in ((14, 14, 3), (8, 20, 3), (20, 8, 1)):
                    contract = PixelContract(*shape, resize)
                    assert np.array_equal(decode_image(image, contract, Limits()), decode_by_pillow(image, contract))

    def test_differs_between_crop_ratios_and_interpolations(self) -> None:
        image = encode(noise(60, 60))
        resizes = [*(Resize(1.0, name) for name in INTERPOLATIONS), Resize(0.875), Resize(0.7)]
        decoded = {decode_image(image, PixelContract(14, 14, 3, one), Limits()).tobytes() for one in resizes}
        assert len(decoded) == len(resizes)

    @pytest.mark.parametrize("resize", [Resize(0.875), Resize(0.5, "lanczos")], ids=str)
    def test_does_not_change_an_image_of_the_models_size(self, resize: Resize) -> None:
        picture = noise(14, 9)
        pixels = decode_image(encode(picture), PixelContract(9, 14, 3, resize), Limits())
        assert np.array_equal(pixels, np.asarray(picture))

    @pytest.mark.parametrize("size", [(20_000, 3), (3, 20_000), (1, 1), (1, 400), (400, 1)])
    @pytest.mark.parametrize("shape", [(4, 4, 3), (2, 9, 3), (9, 2, 1)])
    def test_of_any_proportions_is_bounded(self, size: tuple[int, int], shape: tuple[int, int, int]) -> None:
        contract = PixelContract(*shape, Resize(MIN_CROP_RATIO, "bicubic"))
        pixels = decode_image(encode(plain("white", size)), contract, Limits())
        assert np.array_equal(pixels, np.full(contract.shape, 255, np.uint8))
        _, resized = plan_resize(size, (contract.width, contract.height), MIN_CROP_RATIO)
        largest = MAX_ASPECT * max(contract.width, contract.height) / MIN_CROP_RATIO
        assert max(resized) <= largest
        assert resized[0] >= contract.width / MIN_CROP_RATIO
        assert resized[1] >= contract.height / MIN_CROP_RATIO

    def test_of_a_long_image_uses_its_centre(self) -> None:
        picture = plain("red", (400, 10))
        picture.paste((0, 0, 255), (150, 0, 250, 10))
        pixels = decode_image(encode(picture), PixelContract(8, 8, 3, Resize(0.5)), Limits())
        assert np.array_equal(pixels, np.full((8, 8, 3), (0, 0, 255), np.uint8))

    @pytest.mark.parametrize("crop_ratio", [0, -1, 0.2, 1.01, float("nan")])
    def test_with_a_crop_ratio_out_of_range_is_refused(self, crop_ratio: float) -> None:
        with pytest.raises(UsageError, match=f"crop_ratio {crop_ratio} is out of range: at least 0.25, at most 1"):
            Resize(crop_ratio)

    @pytest.mark.parametrize("interpolation", ["", "linear", "BILINEAR", "mks2021"])
    def test_with_an_unknown_interpolation_is_refused_with_the_known_ones(self, interpolation: str) -> None:
        with pytest.raises(UsageError, match="is unknown: choose one of nearest, box, bilinear, "):
            Resize(1.0, interpolation)

    def test_is_described_in_words(self) -> None:
        shorter = "shorter side resized"
        assert Resize(jpeg_scaling=False).describe() == f"{shorter}, centre cropped (Pillow, bilinear, antialiased)"
        scaled = "; large JPEGs decoded at 1/2, 1/4 or 1/8"
        assert Resize().describe() == f"{shorter}, centre cropped (Pillow, bilinear, antialiased){scaled}"
        assert Resize(0.875, "nearest", False).describe() == (
            f"{shorter} to 1/0.875 of the crop, centre cropped (Pillow, nearest)"
        )


class TestJpegScaling:
    @pytest.mark.parametrize(
        ("size", "scale"),
        [
            ((4000, 3000), 4),
            ((3584, 3584), 8),
            ((3584, 3583), 4),
            ((3583, 9000), 4),
            ((1792, 1792), 4),
            ((1792, 1791), 2),
            ((896, 896), 2),
            ((895, 4000), 1),
            ((224, 224), 1),
        ],
    )
    def test_leaves_at_least_twice_the_wanted_size(self, size: tuple[int, int], scale: int) -> None:
        assert choose_jpeg_scale(size, (224, 224)) == scale
        assert choose_jpeg_scale(size[::-1], (224, 224)) == scale

    def test_is_chosen_by_the_size_before_the_crop(self) -> None:
        image = encode(noise(80, 64), "JPEG")
        assert find_scale(image, PixelContract(16, 16, 3)) == 2
        assert find_scale(image, PixelContract(16, 16, 3, Resize(0.99))) == 2  # 16 / 0.99 is rounded to 16
        assert find_scale(image, PixelContract(16, 16, 3, Resize(0.875))) == 1

    @pytest.mark.parametrize("orientation", [1, SIDEWAYS])
    def test_is_chosen_by_the_upright_size(self, orientation: int) -> None:
        image = encode(noise(128, 64), "JPEG", exif=oriented(orientation))
        tall, wide = PixelContract(32, 16, 3), PixelContract(16, 32, 3)
        assert find_scale(image, tall) == (2 if orientation == SIDEWAYS else 1)
        assert find_scale(image, wide) == (1 if orientation == SIDEWAYS else 2)

    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("subsampling", [0, 1, 2])
    @pytest.mark.parametrize("orientation", [1, 3, SIDEWAYS, 7])
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_has_the_bits_of_pillows_draft_mode(
        self, mode: str, orientation: int, subsampling: int, progressive: bool
    ) -> None:
        """Subsampled CMYK is decoded by Pillow, all other JPEGs by TurboJPEG."""
        image = encode(
            noise(139, 71, mode), "JPEG", subsampling=subsampling, progressive=progressive, exif=oriented(orientation)
        )
        scales = set()
        for side in (4, 8, 16):
            for channels in (1, 3):
                contract = PixelContract(side, side, channels)
                scales.add(find_scale(image, contract))
                assert np.array_equal(decode_image(image, contract, Limits()), decode_by_pillow(image, contract))
        assert scales == {8, 4, 2}

    @pytest.mark.parametrize("size", [(1300, 1100), (2100, 2000)])  # decoded to RGB and to RGBX
    def test_of_a_large_jpeg_has_the_bits_of_pillows_draft_mode(self, size: tuple[int, int]) -> None:
        image, contract = encode(noise(*size), "JPEG"), PixelContract(250, 250, 3)
        assert find_scale(image, contract) == (4 if size[0] > 2000 else 2)
        assert np.array_equal(decode_image(image, contract, Limits()), decode_by_pillow(image, contract))
        contract = PixelContract(500, 500, 3)
        assert np.array_equal(decode_image(image, contract, Limits()), decode_by_pillow(image, contract))

    def test_off_decodes_every_pixel(self) -> None:
        image = encode(noise(64, 64), "JPEG")
        contract = PixelContract(4, 4, 3, Resize(jpeg_scaling=False))
        with Image.open(io.BytesIO(image)) as whole:
            expected = whole.resize((4, 4), Image.Resampling.BILINEAR)
        assert np.array_equal(decode_image(image, contract, Limits()), np.asarray(expected))
        assert not np.array_equal(decode_image(image, PixelContract(4, 4, 3), Limits()), np.asarray(expected))

    def test_is_not_used_without_a_contract(self) -> None:
        image = encode(noise(64, 64), "JPEG")
        with Image.open(io.BytesIO(image)) as opened:
            assert np.array_equal(decode_whole(image, 3, Limits()), np.asarray(opened))

    @pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP"])
    def test_is_not_used_for_other_formats(self, image_format: str) -> None:
        image = encode(noise(64, 64), image_format)
        assert find_scale(image, PixelContract(4, 4, 3)) == 1
        assert np.array_equal(
            decode_image(image, PixelContract(4, 4, 3), Limits()), decode_by_pillow(image, PixelContract(4, 4, 3))
        )

    def test_of_simplejpeg_has_the_size_that_is_expected_of_it(self) -> None:
        """simplejpeg chooses one of sixteen scales by the smallest size that is large enough."""
        image = bytearray(encode(plain("red", (8, 8)), "JPEG"))
        start = image.index(b"\xff\xc0") + 5
        rng = random.Random(0)
        for _ in range(5000):
            scale, top = rng.choice((2, 4, 8)), rng.choice((60, 300, 65_000))
            width, height = rng.randint(2 * scale, top), rng.randint(2 * scale, top)
            image[start : start + 4] = struct.pack(">HH", height, width)
            wanted = -(-height // scale), -(-width // scale)
            found = simplejpeg.decode_jpeg_header(bytes(image), min_height=wanted[0], min_width=wanted[1])
            assert found[:2] == wanted

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("scale", [2, 4, 8])
    def test_detects_the_same_damage(self, mode: str, progressive: bool, scale: int) -> None:
        image = encode(noise(160, 160, mode), "JPEG", progressive=progressive)
        contract = PixelContract(80 // scale, 80 // scale, 3)
        assert find_scale(image, contract) == scale
        middle = len(image) // 2
        for damaged in (
            image[:middle] + bytes(400) + image[middle + 400 :],
            image[:middle],
            image[:-2],
            image[:20] + b"junk" + image[20:],
            image[:-3],
        ):
            with pytest.raises(ImageUnreadable):
                decode_image(damaged, contract, Limits())

    def test_refuses_the_same_files_as_a_decode_of_every_pixel(self) -> None:
        rng = random.Random(1)
        images = [encode(noise(90, 70), "JPEG", progressive=progressive, quality=60) for progressive in (False, True)]
        contracts = [PixelContract(4, 4, 3, Resize(jpeg_scaling=scaling)) for scaling in (False, True)]
        refused = [0, 0]
        for _ in range(300):
            damaged = bytearray(rng.choice(images))
            start = rng.randrange(2, len(damaged))
            damaged[start : start + rng.choice((1, 1, 8, 100))] = rng.randbytes(rng.choice((1, 1, 8, 100)))
            for number, contract in enumerate(contracts):
                try:
                    decode_image(bytes(damaged), contract, Limits())
                except ImageError:
                    refused[number] += 1
            assert refused[0] == refused[1]
        assert 100 < refused[0] < 300

    def test_ignores_the_same_harmless_warnings(self) -> None:
        image = encode(noise(160, 160), "JPEG")
        contract = PixelContract(10, 10, 3)
        old_jfif = image.replace(b"JFIF\0\1", b"JFIF\0\0", 1)
        assert np.array_equal(decode_image(old_jfif, contract, Limits()), decode_image(image, contract, Limits()))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_sampling_has_the_same_bits_in_strips_of_any_height(
    interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = noise(257, 331)
    in_strips = sample(picture, (97, 200), interpolation).tobytes()
    for pixels in (1, 2**30):  # a row at a time, and all at once
        monkeypatch.setattr(sampling, "STRIP_PIXELS", pixels)
        assert sample(picture, (97, 200), interpolation).tobytes() == in_strips
