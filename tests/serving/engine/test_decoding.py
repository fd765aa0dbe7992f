"""The memory that decoding takes, computed from headers, and the log of damaged EXIF blocks."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.decoded_apart import measure_apart
from evalmode.images.headers import read_header
from evalmode.images.pixels import PixelContract, Resize, decode_image
from evalmode.limits import Limits
from serving.engine.decodes import SMALL_BYTES, Decodes
from serving.engine.decoding import MIB, _ExifLog, count_decode_bytes, decode_requested
from serving.engine.shared_limits import Alone, SharedSlots
from tests.conftest import encode, plain

CONTRACT = PixelContract(4, 4, 3)
RESIZES = [
    Resize(),
    Resize(0.875, "lanczos"),
    Resize(0.25, "bicubic", False),
    Resize(jpeg_scaling=False, keeps_exact_size=False),
    Resize(0.25, jpeg_scaling=False, mode="squash"),
    Resize(jpeg_scaling=False, mode="letterbox"),
    Resize(jpeg_scaling=False, mode="letterbox", interpolation="bicubic", antialias=False),
    Resize(0.25, jpeg_scaling=False, mode="squash", antialias=False),
]


def test_damaged_exif_blocks_cost_one_log_record_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("serving.engine.decoding.time.monotonic", lambda: now_s)
    monkeypatch.setattr("serving.engine.decoding._exif_log", _ExifLog())
    contract = PixelContract(8, 8, 3)
    sound, damaged = (
        read_header(encode(plain("red", (8, 8)), "JPEG", exif=exif), Limits())
        for exif in (b"", b"Exif\0\0MM\0*\xff\xff\xff\x7f\0\2" + bytes(24))
    )
    decode_requested(sound, contract)
    assert caplog.messages == []
    for _ in range(3):
        assert decode_requested(damaged, contract).shape == (8, 8, 3)
    assert len(caplog.messages) == 1
    assert "EXIF block of an image is damaged" in caplog.messages[0]
    now_s += 60
    decode_requested(damaged, contract)
    assert len(caplog.messages) == 2


class TestScaledJpegs:
    """A JPEG that is decoded at a fraction of its size takes the memory of the small picture."""

    PHOTO = read_header(encode(plain("red", (4000, 3000)), "JPEG"), Limits())

    def test_reserve_the_memory_of_the_scaled_picture(self) -> None:
        scaled, plain_bytes = (
            count_decode_bytes(self.PHOTO, PixelContract(224, 224, 3, Resize(jpeg_scaling=scaling)))
            for scaling in (True, False)
        )
        assert plain_bytes > 4 * 4000 * 3000
        assert 4 * 1000 * 750 < scaled < plain_bytes / 4

    def test_are_not_small_if_they_have_many_pixels(self) -> None:
        scaled = count_decode_bytes(self.PHOTO, CONTRACT)
        decodes = Decodes(SharedSlots(2, "large_slots", Alone), 1024 * MIB)
        assert scaled == SMALL_BYTES + 1
        assert not decodes.is_small(scaled)
        fewer = read_header(encode(plain("red", (1000, 800)), "JPEG"), Limits())
        assert decodes.is_small(count_decode_bytes(fewer, CONTRACT))

    @pytest.mark.parametrize("resize", RESIZES, ids=str)
    @pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
    def test_need_no_more_memory_than_reserved(self, resize: Resize, options: dict[str, Any]) -> None:
        image = encode(plain("red", (1800, 1500)), "JPEG", **options)
        contract, small = PixelContract(120, 120, 3, resize), encode(plain("red", (64, 64)))
        measured = measure_apart(
            lambda: decode_image(image, contract, Limits()), lambda: decode_image(small, contract, Limits())
        )
        assert measured.answer == "ok"
        assert (
            measured.peak_bytes <= count_decode_bytes(read_header(image, Limits()), contract) + 2 * MIB
        )  # of the allocator
