"""Golden images of large networks are stored as JPEG within a budget; other decoders and contracts are detected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from evalmode.artifact.certificate import ClassifierCertificate
from evalmode.artifact.encoded import GoldenImages
from evalmode.artifact.sealing import open_artifact
from evalmode.certification import golden_images
from evalmode.certification.certify import draw_golden
from evalmode.certification.golden_images import MAX_GOLDEN, MIN_GOLDEN, encode_golden, encode_some
from evalmode.certification.large import LARGE_BATCHES, choose_sample, is_large, list_batch_sizes
from evalmode.errors import DecoderMismatch
from evalmode.images.pixels import PixelContract, Resize
from tests.conftest import colour_artifact

CONTRACT = PixelContract(128, 112, 3)
GOLDEN = draw_golden(CONTRACT, MAX_GOLDEN)


def test_small_images_are_stored_as_pixels() -> None:
    assert encode_golden(draw_golden(PixelContract(32, 32, 3), 10)) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_the_pixels_of_their_jpeg(channels: int) -> None:
    golden = GOLDEN[..., :1].repeat(3, axis=1) if channels == 1 else GOLDEN
    encoded = encode_golden(golden)
    assert encoded is not None
    assert all(image.startswith(b"\xff\xd8") for image in encoded.images)
    assert encoded.decode().shape == (len(encoded.images), *golden.shape[1:])
    again = GoldenImages.from_json(encoded.to_json())
    assert np.array_equal(again.decode(), encoded.decode())
    assert again.measure() == encoded.decode().nbytes


@pytest.mark.parametrize(("budget", "count"), [(10**9, MAX_GOLDEN), (250_000, range(MIN_GOLDEN, MAX_GOLDEN))])
def test_the_number_of_golden_images_follows_the_budget(budget: int, count: int | range) -> None:
    with patch.object(golden_images, "GOLDEN_BYTES", budget):
        encoded = encode_golden(GOLDEN)
    assert encoded is not None
    assert sum(map(len, encoded.images)) <= budget
    assert len(encoded.images) == count if isinstance(count, int) else len(encoded.images) in count


def test_a_lower_quality_keeps_the_smallest_number_of_images() -> None:
    with patch.object(golden_images, "GOLDEN_BYTES", 80_000):
        encoded = encode_golden(GOLDEN)
    assert encoded is not None
    assert len(encoded.images) >= MIN_GOLDEN
    assert sum(map(len, encoded.images)) <= 80_000


def test_golden_images_that_are_decoded_to_other_pixels_are_detected() -> None:
    encoded = encode_golden(GOLDEN)
    assert encoded is not None
    for damaged in (replace(encoded, digest="0" * 64), replace(encoded, images=(*encoded.images[1:], b"no image"))):
        with pytest.raises(DecoderMismatch, match="golden image"):
            damaged.decode()


def test_golden_images_of_different_sizes_are_damaged() -> None:
    large, other = encode_golden(GOLDEN[:1]), encode_golden(GOLDEN[:1, 1:])
    assert large is not None
    assert other is not None
    with pytest.raises(ValueError, match="golden images of 2 sizes"):
        replace(large, images=(*large.images, *other.images)).measure()


CROP = Resize()
WHOLE = Resize(0.875, keeps_exact_size=False)
BOXED = Resize(mode="letterbox")
OTHER_RULES: dict[str, tuple[Resize, dict[str, Any]]] = {
    "crop ratio": (CROP, {"resize": Resize(crop_ratio=0.875)}),
    "interpolation": (CROP, {"resize": Resize(interpolation="bicubic")}),
    "JPEG scaling": (CROP, {"resize": Resize(jpeg_scaling=False)}),
    "squash for crop": (CROP, {"resize": Resize(mode="squash")}),
    "letterbox for crop": (CROP, {"resize": BOXED}),
    "colour of the letterbox": (BOXED, {"resize": replace(BOXED, padding=(114, 114, 115))}),
    "no antialias": (CROP, {"resize": Resize(antialias=False)}),
    "exact size kept": (WHOLE, {"resize": replace(WHOLE, keeps_exact_size=True)}),
    "crop offset": (WHOLE, {"resize": replace(WHOLE, crop_offset="floored")}),
    "BGR": (CROP, {"channel_order": "BGR"}),
    "EXIF orientation": (CROP, {"exif_orientation": False}),
    "EXIF orientation without a resize": (Resize(mode="none"), {"exif_orientation": False}),
    "background": (CROP, {"background": (255, 255, 254)}),
    "transparency ignored": (CROP, {"background": None}),
    "background without a resize": (Resize(mode="none"), {"background": (0, 0, 0)}),
}


@pytest.mark.parametrize("shape", [(8, 8), (128, 128), (12, 180)], ids=str)
@pytest.mark.parametrize(("resize", "other"), OTHER_RULES.values(), ids=OTHER_RULES)
def test_another_rule_of_the_pixel_contract_gives_other_pixels(
    resize: Resize, other: dict[str, Any], shape: tuple[int, int]
) -> None:
    contract = PixelContract(*shape, 3, resize)
    certificate = open_artifact(colour_artifact())[1].certificate
    assert isinstance(certificate, ClassifierCertificate)
    certificate = replace(certificate, encoded=encode_some(draw_golden(contract, 3), contract))
    certificate.check_decoder(contract)
    with pytest.raises(DecoderMismatch, match="of the certificate is decoded to other pixels"):
        certificate.check_decoder(replace(contract, **other))


def test_samples_follow_from_the_inputs() -> None:
    small, large = np.zeros((1000, 32, 32, 3), np.uint8), np.zeros((400, 224, 224, 3), np.uint8)
    assert (is_large(small), is_large(large)) == (False, True)
    assert len(small[choose_sample(small)]) == 1000
    assert len(large[choose_sample(large)]) == 100
    assert list_batch_sizes(small[0].nbytes) == tuple(range(1, 65))
    assert list_batch_sizes(large[0].nbytes) == LARGE_BATCHES
