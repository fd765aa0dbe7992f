"""The budget for decoding: how many at once, in how much memory, in which order, and what each image is counted as."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from unittest.mock import patch

import numpy as np
import pytest

from serving.decoding import MIB, DecodeBudget, count_decode_bytes, make_budget
from serving.errors import DeadlineExpired, ImageError, ImageNeedsTooMuchMemory, RequestCancelled
from serving.headers import Header
from serving.limits import Limits
from serving.pixels import PixelContract, announce_image
from tests.conftest import encode, plain
from tests.serving.conftest import WAIT_S, Caller, spawn, wait_until

CONTRACT = PixelContract(4, 4, 3)
SIDES = {"small": 8, "medium": 1500, "large": 2200, "larger": 2500}
IMAGES = {name: encode(plain("red", (side, side))) for name, side in SIDES.items()}
COSTS = {name: count_decode_bytes(announce_image(image, Limits()), CONTRACT) for name, image in IMAGES.items()}
SENT: list[Future[np.ndarray]] = []


class Decoder:
    """Decodes nothing: shows what has begun, and waits until it may end."""

    def __init__(self) -> None:
        self.begun: list[int] = []  # widths, in the order in which they began
        self._go_on: dict[int, threading.Event] = {side: threading.Event() for side in SIDES.values()}

    def __call__(self, header: Header, contract: PixelContract) -> np.ndarray:
        self.begun.append(header.width)
        assert self._go_on[header.width].wait(2 * WAIT_S)  # longer than the test: what it waits for is no time-out
        return np.zeros(contract.shape, np.uint8)

    def end(self, *names: str) -> None:
        for name in names:
            self._go_on[SIDES[name]].set()

    def wait_begun(self, *names: str) -> None:
        wait_until(lambda: self.begun == [SIDES[name] for name in names])


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    waiting = Decoder()
    with patch("serving.decoding.decode_announced", waiting):
        yield waiting
        waiting.end(*SIDES)
        while SENT:
            SENT.pop().exception(WAIT_S)


def make(max_bytes: int, slots: int = 2) -> DecodeBudget:
    """A budget with so much for what is not small: all but an eighth."""
    return DecodeBudget(slots, 8 * (max_bytes // 7) + max_bytes % 7, Limits())


def send(budget: DecodeBudget, name: str, caller: Caller | None = None) -> Future[np.ndarray]:
    SENT.append(spawn(budget.decode, IMAGES[name], CONTRACT, caller or Caller()))
    return SENT[-1]


def wait_in_line(budget: DecodeBudget, count: int) -> None:
    wait_until(lambda: len(budget._large._line) == count)


def test_decodes_run_at_once_as_long_as_they_fit(decoder: Decoder) -> None:
    budget = make(COSTS["large"] + COSTS["medium"], slots=3)
    ends = [send(budget, "large")]
    decoder.wait_begun("large")
    ends.append(send(budget, "medium"))
    decoder.wait_begun("large", "medium")
    waiting = send(budget, "medium")
    wait_in_line(budget, 1)
    decoder.end("large")
    decoder.wait_begun("large", "medium", "medium")
    decoder.end("medium")
    for end in (*ends, waiting):
        assert end.result(WAIT_S).shape == CONTRACT.shape
    wait_in_line(budget, 0)
    assert budget._large._free_bytes == COSTS["large"] + COSTS["medium"]


def test_there_are_no_more_at_once_than_slots(decoder: Decoder) -> None:
    budget = make(1024 * MIB, slots=1)
    first = send(budget, "large")
    decoder.wait_begun("large")
    second = send(budget, "medium")
    wait_in_line(budget, 1)
    assert decoder.begun == [SIDES["large"]]
    decoder.end("large", "medium")
    assert first.result(WAIT_S) is not None
    assert second.result(WAIT_S) is not None


def test_a_small_image_does_not_wait_behind_large_ones(decoder: Decoder) -> None:
    budget = make(COSTS["large"], slots=1)
    send(budget, "large")
    decoder.wait_begun("large")
    send(budget, "medium")
    wait_in_line(budget, 1)
    small = send(budget, "small")
    decoder.wait_begun("large", "small")
    decoder.end("small")
    assert small.result(WAIT_S) is not None


def test_small_images_wait_for_small_ones(decoder: Decoder) -> None:
    budget = make(COSTS["large"], slots=1)
    first, second = send(budget, "small"), send(budget, "small")
    wait_until(lambda: len(budget._small._line) == 1)
    assert decoder.begun == [SIDES["small"]]
    decoder.end("small")
    assert first.result(WAIT_S) is not None
    assert second.result(WAIT_S) is not None


def test_a_large_image_is_not_overtaken_for_ever_by_those_that_fit(decoder: Decoder) -> None:
    """While the first in line does not fit, those that come later wait with it, although they would."""
    budget = make(COSTS["larger"] + COSTS["medium"], slots=3)
    with patch("serving.decoding.PACE_BYTES_PER_S", 1e15):  # by arrival alone
        send(budget, "large")
        decoder.wait_begun("large")
        larger = send(budget, "larger")
        wait_in_line(budget, 1)
        send(budget, "medium")
        wait_in_line(budget, 2)
        assert decoder.begun == [SIDES["large"]]
        decoder.end("large")
        wait_until(lambda: SIDES["larger"] in decoder.begun)
        decoder.end("larger")
        assert larger.result(WAIT_S) is not None


def test_of_those_that_wait_a_smaller_one_goes_first(decoder: Decoder) -> None:
    budget = make(COSTS["larger"], slots=1)
    send(budget, "large")
    decoder.wait_begun("large")
    with patch("serving.decoding.PACE_BYTES_PER_S", 1.0):
        send(budget, "larger")
        wait_in_line(budget, 1)
        send(budget, "medium")
        wait_in_line(budget, 2)
    decoder.end("large")
    decoder.wait_begun("large", "medium")
    decoder.end("medium")
    decoder.wait_begun("large", "medium", "larger")


def test_a_caller_that_went_away_leaves_the_line_to_the_others(decoder: Decoder) -> None:
    budget = make(COSTS["larger"])
    send(budget, "medium")
    decoder.wait_begun("medium")
    caller = Caller()
    with patch("serving.decoding.PACE_BYTES_PER_S", 1e15):  # by arrival alone
        larger = send(budget, "larger", caller)
        wait_in_line(budget, 1)
        send(budget, "medium")
        wait_in_line(budget, 2)
    caller.cancel()
    with pytest.raises(RequestCancelled):
        larger.result(WAIT_S)
    decoder.wait_begun("medium", "medium")


def test_a_caller_that_went_away_as_it_was_let_in_gives_its_memory_back(decoder: Decoder) -> None:
    budget = make(COSTS["large"], slots=1)
    send(budget, "large")
    decoder.wait_begun("large")
    caller = Caller()
    waiting = send(budget, "medium", caller)
    wait_in_line(budget, 1)
    caller.gone = True  # nobody has told it yet
    decoder.end("large")
    with pytest.raises(RequestCancelled):
        waiting.result(WAIT_S)
    send(budget, "medium")
    decoder.wait_begun("large", "medium")


def test_a_deadline_that_passes_ends_the_wait(decoder: Decoder) -> None:
    budget = make(COSTS["large"], slots=1)
    send(budget, "large")
    decoder.wait_begun("large")
    late = send(budget, "large", Caller(remaining_s=0.05))
    with pytest.raises(DeadlineExpired, match="memory"):
        late.result(WAIT_S)
    wait_in_line(budget, 0)


def test_what_can_never_fit_is_refused_at_once_with_the_figures() -> None:
    budget = make(COSTS["large"] - 1)
    with pytest.raises(ImageNeedsTooMuchMemory, match=f"{COSTS['large']} bytes, the limit is") as caught:
        budget.decode(IMAGES["large"], CONTRACT, Caller())
    assert caught.value.facts == {"needed_bytes": str(COSTS["large"]), "limit_bytes": str(COSTS["large"] - 1)}


def test_what_cannot_be_decoded_gives_its_memory_back() -> None:
    budget = make(COSTS["large"])
    broken = IMAGES["large"][:-200]
    for _ in range(3):
        with pytest.raises(ImageError):
            budget.decode(broken, CONTRACT, Caller())
    assert budget._large._free_bytes == COSTS["large"]
    assert budget.decode(IMAGES["large"], CONTRACT, Caller()).shape == CONTRACT.shape


def test_the_limit_of_the_server_is_the_budgets() -> None:
    with pytest.raises(ImageNeedsTooMuchMemory):
        make_budget(1, Limits(max_decode_bytes=8 * MIB)).decode(IMAGES["larger"], CONTRACT, Caller())
