"""The budget for decoding: how many at once, in how much memory, in which order, and what each image is counted as."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from evalmode.errors import ImageNeedsTooMuchMemory
from evalmode.images.headers import read_header
from evalmode.images.pixels import PixelContract
from evalmode.limits import Limits
from serving.engine.decoding import MIB, DecodeBudget, Turn, _ExifLog, count_decode_bytes, decode_requested
from tests.conftest import encode, plain
from tests.serving.conftest import WAIT_S, count_turns, make_budget, wait_until

CONTRACT = PixelContract(4, 4, 3)
SIDES = {"small": 8, "medium": 1500, "large": 2200, "larger": 2500}
IMAGES = {name: encode(plain("red", (side, side))) for name, side in SIDES.items()}
COSTS = {name: count_decode_bytes(read_header(image, Limits()), CONTRACT) for name, image in IMAGES.items()}


class Decoder:
    """Decodes nothing: shows what has begun, and waits until it may end."""

    def __init__(self) -> None:
        self.begun: list[str] = []  # in the order in which they began
        self.ended = 0
        self._go_on: dict[str, threading.Event] = {name: threading.Event() for name in SIDES}

    def decode(self, name: str) -> None:
        self.begun.append(name)
        assert self._go_on[name].wait(2 * WAIT_S)  # longer than the test: what it waits for is no time-out
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


def make(max_bytes: int, slots: int = 2) -> DecodeBudget:
    """A budget with so much for what is not small: all but an eighth."""
    budget = make_budget(slots, 8 * (max_bytes // 7) + max_bytes % 7)
    assert budget.is_small(COSTS["small"])
    assert not budget.is_small(COSTS["medium"])
    return budget


def wait_in_line(budget: DecodeBudget, count: int) -> None:
    wait_until(lambda: count_turns(budget._large) == count)


def test_decodes_run_at_once_as_long_as_they_fit(decoder: Decoder) -> None:
    budget = make(COSTS["large"] + COSTS["medium"], slots=3)
    decoder.send(budget, "large")
    decoder.wait_begun("large")
    decoder.send(budget, "medium")
    decoder.wait_begun("large", "medium")
    decoder.send(budget, "medium")
    wait_in_line(budget, 1)
    decoder.end("large")
    decoder.wait_begun("large", "medium", "medium")
    decoder.end("medium")
    decoder.wait_ended(3)
    wait_in_line(budget, 0)
    wait_until(lambda: budget._large._free_bytes == COSTS["large"] + COSTS["medium"])


def test_there_are_no_more_at_once_than_slots(decoder: Decoder) -> None:
    budget = make(1024 * MIB, slots=1)
    decoder.send(budget, "large")
    decoder.wait_begun("large")
    decoder.send(budget, "medium")
    wait_in_line(budget, 1)
    assert decoder.begun == ["large"]
    decoder.end("large", "medium")
    decoder.wait_ended(2)


def test_a_small_image_does_not_wait_behind_large_ones(decoder: Decoder) -> None:
    budget = make(COSTS["large"], slots=1)
    decoder.send(budget, "large")
    decoder.wait_begun("large")
    decoder.send(budget, "medium")
    wait_in_line(budget, 1)
    decoder.send(budget, "small")
    decoder.wait_begun("large", "small")
    decoder.end("small")
    decoder.wait_ended(1)


def test_small_images_wait_for_small_ones(decoder: Decoder) -> None:
    budget = make(COSTS["large"], slots=1)
    decoder.send(budget, "small")
    decoder.wait_begun("small")
    decoder.send(budget, "small")
    wait_until(lambda: count_turns(budget._small) == 1)
    assert decoder.begun == ["small"]
    decoder.end("small")
    decoder.wait_ended(2)


def test_a_large_image_is_not_overtaken_for_ever_by_those_that_fit(decoder: Decoder) -> None:
    """While the first in line does not fit, those that come later wait with it, although they would."""
    budget = make(COSTS["larger"] + COSTS["medium"], slots=3)
    with patch("serving.engine.decoding.PACE_BYTES_PER_S", 1e15):  # by arrival alone
        decoder.send(budget, "large")
        decoder.wait_begun("large")
        decoder.send(budget, "larger")
        wait_in_line(budget, 1)
        decoder.send(budget, "medium")
        wait_in_line(budget, 2)
        assert decoder.begun == ["large"]
        decoder.end("large")
        wait_until(lambda: sorted(decoder.begun) == ["large", "larger", "medium"])
        decoder.end("larger")
        decoder.wait_ended(2)


def test_of_those_that_wait_a_smaller_one_goes_first(decoder: Decoder) -> None:
    budget = make(COSTS["larger"], slots=1)
    decoder.send(budget, "large")
    decoder.wait_begun("large")
    with patch("serving.engine.decoding.PACE_BYTES_PER_S", 1.0):
        decoder.send(budget, "larger")
        decoder.send(budget, "medium")
        wait_in_line(budget, 2)
    decoder.end("large")
    decoder.wait_begun("large", "medium")
    decoder.end("medium")
    decoder.wait_begun("large", "medium", "larger")


def test_a_caller_that_went_away_leaves_the_line_to_the_others(decoder: Decoder) -> None:
    budget = make(COSTS["larger"])
    decoder.send(budget, "medium")
    decoder.wait_begun("medium")
    with patch("serving.engine.decoding.PACE_BYTES_PER_S", 1e15):  # by arrival alone
        larger = decoder.send(budget, "larger")
        decoder.send(budget, "medium")
    wait_in_line(budget, 2)
    wait_until(lambda: len(budget._large._changed._waiters) == 1)  # the other thread has looked, and sleeps again
    assert budget.withdraw(larger)
    decoder.wait_begun("medium", "medium")
    assert not budget.withdraw(larger)  # once


def test_small_work_that_waits_is_withdrawn_too(decoder: Decoder) -> None:
    budget = make(COSTS["large"], slots=1)
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


def test_what_can_never_fit_is_refused_at_once_with_the_figures() -> None:
    budget = make(COSTS["large"] - 1)
    with pytest.raises(ImageNeedsTooMuchMemory, match=f"{COSTS['large']} bytes, the limit is") as caught:
        budget.check(COSTS["large"])
    assert caught.value.facts == {"needed_bytes": str(COSTS["large"]), "limit_bytes": str(COSTS["large"] - 1)}
    budget.check(COSTS["large"] - 1)


def test_work_that_takes_more_than_there_is_runs_alone(decoder: Decoder) -> None:
    """Several images of one request fit one by one, and so they have been checked; together they may not."""
    budget = make(COSTS["large"])
    decoder.send(budget, "larger")
    decoder.wait_begun("larger")
    decoder.send(budget, "medium")
    wait_in_line(budget, 1)
    assert decoder.begun == ["larger"]
    decoder.end("larger")
    decoder.wait_begun("larger", "medium")


def test_work_that_raises_is_logged_and_gives_its_memory_and_thread_back(
    decoder: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    budget = make(COSTS["large"], slots=1)

    def fail() -> None:
        raise ValueError("of the service")

    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            budget.submit(fail, COSTS["large"])
        decoder.send(budget, "large")
        decoder.wait_begun("large")
    assert [str(record.exc_info[1]) for record in caplog.records] == ["of the service"] * 3


def test_what_was_done_is_not_kept() -> None:
    class Request:
        """A request's message."""

        def read(self) -> None:
            pass

    budget = make(COSTS["large"], slots=1)
    for cost_bytes in (0, COSTS["medium"]):
        request = Request()
        kept = weakref.ref(request)
        gc.disable()
        try:
            budget.submit(request.read, cost_bytes)
            del request
            wait_until(lambda kept=kept: kept() is None)
        finally:
            gc.enable()


def test_threads_end_when_the_budget_is_closed_and_nothing_waits(decoder: Decoder) -> None:
    before = set(threading.enumerate())
    budget = make(COSTS["large"], slots=2)
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


def test_the_limit_of_the_server_is_the_budgets() -> None:
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
