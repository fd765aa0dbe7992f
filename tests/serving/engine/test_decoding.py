"""The decode budget: number of concurrent decodes, their memory, their order, and the cost of an image."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from decoded_apart import measure_apart

from evalmode.errors import ImageNeedsTooMuchMemory
from evalmode.images.headers import read_header
from evalmode.images.pixels import PixelContract, Resize, decode_image
from evalmode.limits import Limits
from serving.engine.decoding import (
    MIB,
    SMALL_BYTES,
    DecodeBudget,
    Turn,
    _ExifLog,
    count_decode_bytes,
    decode_requested,
)
from tests.conftest import encode, plain
from tests.serving.conftest import WAIT_S, count_turns, make_budget, wait_until

CONTRACT = PixelContract(4, 4, 3)
SIDES = {"small": 8, "medium": 1500, "large": 2200, "larger": 2500}
IMAGES = {name: encode(plain("red", (side, side))) for name, side in SIDES.items()}
COSTS = {name: count_decode_bytes(read_header(image, Limits()), CONTRACT) for name, image in IMAGES.items()}


class Decoder:
    """A decoder that records what has begun, and blocks until it may end."""

    def __init__(self) -> None:
        self.begun: list[str] = []  # in the order in which they began
        self.ended = 0
        self._go_on: dict[str, threading.Event] = {name: threading.Event() for name in SIDES}

    def decode(self, name: str) -> None:
        self.begun.append(name)
        assert self._go_on[name].wait(2 * WAIT_S)  # longer than the deadline of the test
        self.ended += 1

    def send(self, budget: DecodeBudget, name: str) -> Turn:
        return budget.submit(lambda: self.decode(name), COSTS[name])

    def end(self, *names: str) -> None:
        for name in names:
            self._go_on[name].set()

    def wait_begun(self, *names: str) -> None:
        wait_until(lambda: self.begun == [*names])

    def wait_ended(self, count: int) -> None:
        wait_until(lambda: self.ended == count)


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    waiting = Decoder()
    yield waiting
    waiting.end(*SIDES)


def make_large_budget(max_bytes: int, slots: int = 2) -> DecodeBudget:
    """A budget with ``max_bytes`` for large images: an eighth of the total is reserved for small ones."""
    budget = make_budget(slots, 8 * (max_bytes // 7) + max_bytes % 7)
    assert budget.is_small(COSTS["small"])
    assert not budget.is_small(COSTS["medium"])
    return budget


def wait_until_queued(budget: DecodeBudget, count: int) -> None:
    wait_until(lambda: count_turns(budget._large) == count)


def test_decodes_run_concurrently_if_they_fit_into_the_memory(decoder: Decoder) -> None:
    budget = make_large_budget(COSTS["large"] + COSTS["medium"], slots=3)
    decoder.send(budget, "large")
    decoder.wait_begun("large")
    decoder.send(budget, "medium")
    decoder.wait_begun("large", "medium")
    decoder.send(budget, "medium")
    wait_until_queued(budget, 1)
    decoder.end("large")
    decoder.wait_begun("large", "medium", "medium")
    decoder.end("medium")
    decoder.wait_ended(3)
    wait_until_queued(budget, 0)
    wait_until(lambda: budget._large._free_bytes == COSTS["large"] + COSTS["medium"])


def test_at_most_one_decode_per_slot_runs(decoder: Decoder) -> None:
    budget = make_large_budget(1024 * MIB, slots=1)
    decoder.send(budget, "large")
    decoder.wait_begun("large")
    decoder.send(budget, "medium")
    wait_until_queued(budget, 1)
    assert decoder.begun == ["large"]
    decoder.end("large", "medium")
    decoder.wait_ended(2)


def test_a_small_image_does_not_wait_behind_large_ones(decoder: Decoder) -> None:
    budget = make_large_budget(COSTS["large"], slots=1)
    decoder.send(budget, "large")
    decoder.wait_begun("large")
    decoder.send(budget, "medium")
    wait_until_queued(budget, 1)
    decoder.send(budget, "small")
    decoder.wait_begun("large", "small")
    decoder.end("small")
    decoder.wait_ended(1)


def test_small_images_wait_for_a_thread_for_small_images(decoder: Decoder) -> None:
    budget = make_large_budget(COSTS["large"], slots=1)
    decoder.send(budget, "small")
    decoder.wait_begun("small")
    decoder.send(budget, "small")
    wait_until(lambda: count_turns(budget._small) == 1)
    assert decoder.begun == ["small"]
    decoder.end("small")
    decoder.wait_ended(2)


def test_a_large_image_does_not_starve(decoder: Decoder) -> None:
    """While the first in the queue does not fit, later images wait, too, even if they would fit."""
    budget = make_large_budget(COSTS["larger"] + COSTS["medium"], slots=3)
    with patch("serving.engine.decoding.PACE_BYTES_PER_S", 1e15):  # order of arrival
        decoder.send(budget, "large")
        decoder.wait_begun("large")
        decoder.send(budget, "larger")
        wait_until_queued(budget, 1)
        decoder.send(budget, "medium")
        wait_until_queued(budget, 2)
        assert decoder.begun == ["large"]
        decoder.end("large")
        wait_until(lambda: sorted(decoder.begun) == ["large", "larger", "medium"])
        decoder.end("larger")
        decoder.wait_ended(2)


def test_a_smaller_image_is_decoded_before_a_larger_one(decoder: Decoder) -> None:
    budget = make_large_budget(COSTS["larger"], slots=1)
    decoder.send(budget, "large")
    decoder.wait_begun("large")
    with patch("serving.engine.decoding.PACE_BYTES_PER_S", 1.0):
        decoder.send(budget, "larger")
        decoder.send(budget, "medium")
        wait_until_queued(budget, 2)
    decoder.end("large")
    decoder.wait_begun("large", "medium")
    decoder.end("medium")
    decoder.wait_begun("large", "medium", "larger")


def test_a_withdrawn_image_does_not_block_the_queue(decoder: Decoder) -> None:
    budget = make_large_budget(COSTS["larger"])
    decoder.send(budget, "medium")
    decoder.wait_begun("medium")
    with patch("serving.engine.decoding.PACE_BYTES_PER_S", 1e15):  # order of arrival
        larger = decoder.send(budget, "larger")
        decoder.send(budget, "medium")
    wait_until_queued(budget, 2)
    changed: Any = budget._large._changed
    wait_until(lambda: len(changed._waiters) == 1)  # the other thread sleeps
    assert budget.withdraw(larger)
    decoder.wait_begun("medium", "medium")
    assert not budget.withdraw(larger)  # once


def test_waiting_small_images_can_be_withdrawn(decoder: Decoder) -> None:
    budget = make_large_budget(COSTS["large"], slots=1)
    first = decoder.send(budget, "small")
    decoder.wait_begun("small")
    turns = [decoder.send(budget, "small") for _ in range(3)]
    assert budget.withdraw(turns[1])
    assert not budget.withdraw(first)  # it has begun
    decoder.end("small")
    decoder.wait_ended(3)
    wait_until(lambda: not count_turns(budget._small))
    assert not any(budget.withdraw(turn) for turn in (first, *turns))
    assert decoder.begun == ["small"] * 3


def test_an_image_over_the_limit_is_refused_at_once_with_both_sizes() -> None:
    budget = make_large_budget(COSTS["large"] - 1)
    with pytest.raises(ImageNeedsTooMuchMemory, match=f"{COSTS['large']} bytes, the limit is") as caught:
        budget.check(COSTS["large"])
    assert caught.value.facts == {"needed_bytes": str(COSTS["large"]), "limit_bytes": str(COSTS["large"] - 1)}
    budget.check(COSTS["large"] - 1)


def test_work_over_the_limit_runs_alone(decoder: Decoder) -> None:
    """The images of a request are checked one by one; together they may exceed the limit."""
    budget = make_large_budget(COSTS["large"])
    decoder.send(budget, "larger")
    decoder.wait_begun("larger")
    decoder.send(budget, "medium")
    wait_until_queued(budget, 1)
    assert decoder.begun == ["larger"]
    decoder.end("larger")
    decoder.wait_begun("larger", "medium")


def test_work_that_raises_is_logged_and_releases_its_memory_and_thread(
    decoder: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    budget = make_large_budget(COSTS["large"], slots=1)

    def fail() -> None:
        raise ValueError("of the service")

    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            budget.submit(fail, COSTS["large"])
        decoder.send(budget, "large")
        decoder.wait_begun("large")
    assert [str(record.exc_info and record.exc_info[1]) for record in caplog.records] == ["of the service"] * 3


def is_freed(kept: weakref.ref[Any]) -> bool:
    return kept() is None


def test_finished_work_is_not_referenced() -> None:
    class Request:
        """A request's message."""

        def read(self) -> None:
            pass

    budget = make_large_budget(COSTS["large"], slots=1)
    for cost_bytes in (0, COSTS["medium"]):
        request = Request()
        kept = weakref.ref(request)
        gc.disable()
        try:
            budget.submit(request.read, cost_bytes)
            del request
            wait_until(partial(is_freed, kept))
        finally:
            gc.enable()


def test_threads_end_when_the_budget_is_closed_and_its_queue_is_empty(decoder: Decoder) -> None:
    before = set(threading.enumerate())
    budget = make_large_budget(COSTS["large"], slots=2)
    threads = set(threading.enumerate()) - before
    assert sorted(thread.name for thread in threads) == [
        *("large-decode-0", "large-decode-1", "small-decode-0", "small-decode-1")
    ]
    decoder.send(budget, "large")
    decoder.wait_begun("large")
    decoder.send(budget, "large")
    budget.close()
    wait_until(lambda: sum(thread.is_alive() for thread in threads) == 1)
    decoder.end("large")
    decoder.wait_ended(2)
    wait_until(lambda: not any(thread.is_alive() for thread in threads))


def test_the_budget_applies_the_limit_of_the_server() -> None:
    with pytest.raises(ImageNeedsTooMuchMemory):
        make_budget(1, max_bytes=8 * MIB).check(COSTS["larger"])


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
        budget = make_budget(2, 1024 * MIB)
        assert scaled == SMALL_BYTES + 1
        assert not budget.is_small(scaled)
        fewer = read_header(encode(plain("red", (1000, 800)), "JPEG"), Limits())
        assert budget.is_small(count_decode_bytes(fewer, CONTRACT))

    @pytest.mark.parametrize("resize", [Resize(), Resize(0.875, "lanczos"), Resize(0.25, "bicubic", False)], ids=str)
    @pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
    def test_need_no_more_memory_than_reserved(self, resize: Resize, options: dict[str, Any]) -> None:
        image = encode(plain("red", (1800, 1500)), "JPEG", **options)
        contract, small = PixelContract(120, 120, 3, resize), encode(plain("red", (64, 64)))
        measured = measure_apart(
            lambda: decode_image(image, contract, Limits()), lambda: decode_image(small, contract, Limits())
        )
        assert measured.answer == "ok"
        assert measured.peak_bytes <= count_decode_bytes(read_header(image, Limits()), contract) + MIB
