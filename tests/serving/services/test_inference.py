"""A request from its message to its reply: where each step runs, and that it ends once, wherever it is withdrawn."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from evalmode.errors import (
    DeadlineExpired,
    ImageNeedsTooMuchMemory,
    ImageUnreadable,
    MessageInvalid,
    QueueFull,
    RequestCancelled,
)
from evalmode.images.headers import Header
from evalmode.images.pixels import PixelContract
from evalmode.limits import Limits
from evalmode.runtime.model import ImageClassifier, Model
from evalmode.wire import classifier_pb2, open_inference_pb2
from serving.engine.decoding import MIB, DecodeBudget
from serving.services.classifier import Classifier
from serving.services.inference import QUICK_BYTES, Inference, Unparsed, Work
from serving.services.models import Models
from serving.services.open_inference import OpenInference
from serving.services.source import Source
from serving.services.statistics import Statistics
from tests.conftest import encode, plain
from tests.serving.conftest import WAIT_S, Caller, Direct, Held, count_turns, make_batcher, make_budget, wait_until

RED = np.full((1, 4, 4, 3), (255, 0, 0), np.uint8)
SMALL, LARGE = encode(plain("red")), encode(plain("red", (2200, 2200)))
PIXELS = classifier_pb2.PredictRequest(pixels=classifier_pb2.Pixels(data=RED.tobytes(), height=4, width=4, channels=3))
IMAGE, LARGE_IMAGE = (classifier_pb2.PredictRequest(image=image) for image in (SMALL, LARGE))


def infer(timeout_us: int = 0, images: tuple[bytes, ...] = ()) -> open_inference_pb2.ModelInferRequest:
    """A request with its own deadline; of pixels, or of images."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": RED.shape}
    request = open_inference_pb2.ModelInferRequest(inputs=[tensor], raw_input_contents=[RED.tobytes()])
    if images:
        request.inputs[0].datatype = "BYTES"
        request.inputs[0].shape[:] = [len(images)]
        request.raw_input_contents[:] = [b"".join(len(image).to_bytes(4, "little") + image for image in images)]
    if timeout_us:
        request.parameters["timeout"].int64_param = timeout_us
    return request


class Gate:
    """Stands in for the decoder: shows in which thread each image is decoded, and waits until it may go on."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.open = threading.Event()

    def __call__(self, header: Header, contract: PixelContract) -> np.ndarray:
        self.threads.append(threading.current_thread().name.rpartition("-")[0])
        assert self.open.wait(2 * WAIT_S)
        return RED[0]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    with (
        patch("serving.services.classifier.decode_requested", gate),
        patch("serving.services.inputs.decode_requested", gate),
    ):
        yield gate
        gate.open.set()


@pytest.fixture
def held(model: Model) -> Held:
    return Held(model)


class Bench(Direct):
    """One slot, one decode thread of each kind, room for one large image, and every end of a request counted."""

    def __init__(self, model: Any, service: str = "ours", limits: Limits | None = None) -> None:
        limits, budget, statistics = limits or Limits(), make_budget(1, 64 * MIB), Statistics()
        models = Models({model.name: (model,)}, Source(Path()))
        inference = Inference(make_batcher(1, limits, count_run=statistics.count_run), budget, statistics)
        super().__init__(
            Classifier(models, limits, budget) if service == "ours" else OpenInference(models, inference, limits),
            inference,
        )
        self.given_back = 0
        batcher, give_back = self.inference.batcher, self.inference.batcher.give_back

        def count(aside: bool = False) -> None:
            self.given_back += 1
            give_back(aside)

        batcher.give_back = count

    def refusals(self) -> dict[str, int]:
        """How often each reason has ended a request."""
        counts = self.inference.statistics.counts.values()
        return {reason: number for each in counts for (_, reason), number in each.codes.items() if reason}

    def expect_ended(self, requests: int) -> None:
        """Every place has been given back, once, and nothing is left of any request."""
        assert self.given_back == requests
        assert self.inference.batcher.load().in_flight == self.inference.batcher._aside == 0
        budget = self.inference.budget
        assert not count_turns(budget._small)
        assert not count_turns(budget._large)
        wait_until(lambda: budget._large._free_bytes == budget._large.max_bytes)
        wait_until(lambda: self.inference.batcher.load().slots_busy == 0)


def wait_in_line(budget: DecodeBudget, small: int = 0, large: int = 0) -> None:
    wait_until(lambda: (count_turns(budget._small), count_turns(budget._large)) == (small, large))


ENDS = [(True, RequestCancelled, "cancelled"), (False, DeadlineExpired, "while waiting for")]


@pytest.mark.parametrize(("gone", "error", "words"), ENDS)
class TestWithdrawal:
    """Of a request whose call is cancelled, or whose deadline has passed."""

    @staticmethod
    def withdraw(caller: Caller, gone: bool) -> None:
        if gone:
            caller.cancel()
        else:  # a little before it by the clock here, as gRPC may see it
            caller.remaining_s = 0.001
            for work in caller.works:
                work.withdraw()

    @pytest.mark.parametrize(("request_", "small", "large"), [(IMAGE, 1, 0), (LARGE_IMAGE, 0, 1)])
    def test_while_it_waits_to_be_decoded_ends_it_at_once(
        self,
        model: Model,
        gate: Gate,
        gone: bool,
        error: type[Exception],
        words: str,
        request_: classifier_pb2.PredictRequest,
        small: int,
        large: int,
    ) -> None:
        bench, caller = Bench(model), Caller()
        running = bench.begin(request_)
        wait_until(lambda: len(gate.threads) == 1)
        waiting = bench.begin(request_, caller)
        wait_in_line(bench.inference.budget, small, large)
        self.withdraw(caller, gone)
        with pytest.raises(error, match=words):
            waiting.result(0)
        self.withdraw(caller, gone)  # again: nothing happens
        gate.open.set()
        assert running.result(WAIT_S)
        bench.expect_ended(2)
        assert len(gate.threads) == 1
        assert sum(bench.refusals().values()) == 1

    def test_while_it_waits_for_a_slot_ends_it_at_once(
        self, held: Held, gone: bool, error: type[Exception], words: str
    ) -> None:
        bench, caller = Bench(held), Caller()
        running = bench.begin(PIXELS)
        held.next_batch()
        waiting = bench.begin(PIXELS, caller)
        self.withdraw(caller, gone)
        with pytest.raises(error, match=words):
            waiting.result(0)
        self.withdraw(caller, gone)
        held.let_go()
        assert running.result(WAIT_S)
        bench.expect_ended(2)
        assert held.entered.empty()

    def test_while_it_is_decoded_ends_it_where_it_would_wait_next(
        self, held: Held, gate: Gate, gone: bool, error: type[Exception], words: str
    ) -> None:
        bench, caller = Bench(held), Caller()
        running = bench.begin(PIXELS)
        held.next_batch()
        decoding = bench.begin(IMAGE, caller)
        wait_until(lambda: len(gate.threads) == 1)
        self.withdraw(caller, gone)
        assert not decoding.done()
        gate.open.set()
        with pytest.raises(error, match=words):
            decoding.result(WAIT_S)
        assert not running.done()  # the slot has been busy all the time
        held.let_go()
        assert running.result(WAIT_S)
        bench.expect_ended(2)

    def test_while_it_runs_does_nothing(self, held: Held, gone: bool, error: type[Exception], words: str) -> None:
        bench, caller = Bench(held), Caller()
        running = bench.begin(PIXELS, caller)
        held.next_batch()
        self.withdraw(caller, gone)
        held.let_go()
        assert running.result(WAIT_S)
        self.withdraw(caller, gone)
        bench.expect_ended(1)
        assert not bench.refusals()


def test_a_withdrawal_between_reading_and_the_wait_for_memory_is_not_lost(model: Model, gate: Gate) -> None:
    bench, caller = Bench(model), Caller()
    running = bench.begin(LARGE_IMAGE)
    wait_until(lambda: len(gate.threads) == 1)
    begin, reading, go_on = bench.service.begin, threading.Event(), threading.Event()

    def begin_slowly(*arguments: Any) -> Any:
        read = begin(*arguments)
        reading.set()
        assert go_on.wait(WAIT_S)
        return read

    bench.service.begin = begin_slowly
    waiting = bench.begin(LARGE_IMAGE, caller)
    assert reading.wait(WAIT_S)
    caller.cancel()
    go_on.set()
    with pytest.raises(RequestCancelled):
        waiting.result(WAIT_S)
    assert not running.done()  # the memory has been taken all the time
    gate.open.set()
    assert running.result(WAIT_S)
    bench.expect_ended(2)


def test_a_second_wait_that_begins_before_the_first_is_noted_can_be_withdrawn(model: Model, gate: Gate) -> None:
    """Where the decode thread is quicker than the thread that brought the request."""
    bench, caller = Bench(model), Caller()
    running = bench.begin(LARGE_IMAGE)
    wait_until(lambda: len(gate.threads) == 1)
    budget, submit, brought = bench.inference.budget, bench.inference.budget.submit, threading.current_thread()

    def submit_slowly(work: Callable[[], object], cost_bytes: int = 0) -> Any:
        turn = submit(work, cost_bytes)
        if threading.current_thread() is brought:
            wait_in_line(budget, large=1)
        return turn

    budget.submit = submit_slowly
    waiting = bench.begin(LARGE_IMAGE, caller)
    caller.cancel()
    with pytest.raises(RequestCancelled):
        waiting.result(0)
    gate.open.set()
    assert running.result(WAIT_S)
    bench.expect_ended(2)


class TestOwnTimeout:
    def test_ends_the_wait_for_a_slot(self, held: Held) -> None:
        bench = Bench(held, "theirs")
        running = bench.begin(infer())
        held.next_batch()
        with pytest.raises(DeadlineExpired, match="while waiting for a slot"):
            bench.ask(infer(timeout_us=20_000))
        assert not running.done()
        held.let_go()
        assert running.result(WAIT_S)
        bench.expect_ended(2)
        assert bench.refusals() == {"DEADLINE_EXPIRED": 1}

    def test_ends_the_wait_for_memory(self, model: Model, gate: Gate) -> None:
        bench = Bench(model, "theirs")
        running = bench.begin(infer(images=(LARGE,)))
        wait_until(lambda: len(gate.threads) == 1)
        with pytest.raises(DeadlineExpired, match="memory to decode in"):
            bench.ask(infer(timeout_us=20_000, images=(LARGE,)))
        assert not running.done()
        gate.open.set()
        assert running.result(WAIT_S)
        bench.expect_ended(2)

    def test_that_passes_while_images_are_decoded_decodes_no_more(self, model: Model, gate: Gate) -> None:
        bench = Bench(model, "theirs")
        decoding = bench.begin(infer(timeout_us=50_000, images=(SMALL, SMALL)))
        wait_until(lambda: gate.threads)
        passed = time.monotonic() + 0.1
        wait_until(lambda: time.monotonic() > passed)
        gate.open.set()
        with pytest.raises(DeadlineExpired):
            decoding.result(WAIT_S)
        assert len(gate.threads) == 1
        bench.expect_ended(1)

    def test_that_a_timer_meets_early_is_a_deadline_all_the_same(self, held: Held) -> None:
        """Timers of event loops are rounded."""
        bench, timers = Bench(held, "theirs"), []
        bench.begin(infer())
        held.next_batch()
        waiting: Future[Any] = Future()
        work = Work(
            bench.inference,
            bench.service,
            Unparsed(lambda: infer(50_000), 0),
            Caller(),
            waiting.set_result,
            lambda *timer: timers.append(timer),
        )
        seconds, ring = timers.pop()
        assert 0 < seconds <= 0.05
        ring()
        if not waiting.done():
            assert len(timers) == 1  # the rest
            until = time.monotonic() + seconds
            wait_until(lambda: time.monotonic() > until)
            timers.pop()[1]()
        assert isinstance(waiting.result(0), DeadlineExpired)
        assert isinstance(work, Work)
        held.let_go()

    def test_holds_nothing_for_long_once_the_request_has_ended(self, model: Model) -> None:
        bench, timers = Bench(model, "theirs"), []
        answered: Future[Any] = Future()
        Work(
            bench.inference,
            *(bench.service, Unparsed(lambda: infer(3600 * 10**6), 0), Caller(), answered.set_result),
            lambda *timer: timers.append(timer),
        )
        assert answered.result(WAIT_S).model_name == "colours"
        ((seconds, ring),) = timers
        assert seconds <= 1
        wait_until(lambda: bench.given_back == 1)
        ring()
        assert len(timers) == 1  # no other follows

    def test_beyond_a_second_is_kept_by_one_timer_after_another(self, held: Held) -> None:
        bench, timers, now = Bench(held, "theirs"), [], time.monotonic()
        bench.begin(infer())
        held.next_batch()
        ended: Future[Any] = Future()
        with patch("serving.services.open_inference.time.monotonic", lambda: now):
            Work(
                bench.inference,
                *(bench.service, Unparsed(lambda: infer(2_500_000), 0), Caller(), ended.set_result),
                lambda *timer: timers.append(timer),
            )
            for wanted in (1, 1, 0.5):
                seconds, ring = timers.pop()
                assert seconds == pytest.approx(wanted, abs=1e-3)
                assert not ended.done()
                now += seconds + 1e-6
                ring()
        assert isinstance(ended.result(0), DeadlineExpired)
        assert not timers
        held.let_go()


class TestWhere:
    """Each step runs."""

    @pytest.mark.parametrize(
        ("size_bytes", "request_", "threads"),
        [
            (0, PIXELS, "here"),
            (QUICK_BYTES, PIXELS, "here"),
            (QUICK_BYTES + 1, PIXELS, "small-decode"),
            (32 * MIB, PIXELS, "large-decode"),
            (10**12, PIXELS, "large-decode"),  # as a message may become that is compressed: more than there is
            (0, IMAGE, "here"),
        ],
    )
    def test_a_large_message_is_parsed_in_a_decode_thread(
        self, model: Model, size_bytes: int, request_: Any, threads: str
    ) -> None:
        bench, parsed, answered = Bench(model), [], Future()

        def parse() -> Any:
            here = threading.current_thread() is threading.main_thread()
            parsed.append("here" if here else threading.current_thread().name.rpartition("-")[0])
            return request_

        message = Unparsed(parse, size_bytes)
        Work(bench.inference, bench.service, message, Caller(), answered.set_result, lambda *_: None)
        assert answered.result(WAIT_S).scores[0].label == "red"
        assert parsed == [threads]
        bench.expect_ended(1)

    @pytest.mark.parametrize(("image", "lane"), [(SMALL, "small-decode"), (LARGE, "large-decode")])
    @pytest.mark.parametrize("service", ["ours", "theirs"])
    @pytest.mark.parametrize("size_bytes", [0, QUICK_BYTES + 1])
    def test_a_large_image_is_decoded_in_the_large_lane(
        self, model: Model, gate: Gate, image: bytes, lane: str, service: str, size_bytes: int
    ) -> None:
        bench = Bench(model, service)
        gate.open.set()
        request = classifier_pb2.PredictRequest(image=image) if service == "ours" else infer(images=(image,))
        assert bench.begin(request, size_bytes=size_bytes).result(WAIT_S)
        assert gate.threads == [lane]
        bench.expect_ended(1)


class TestEnd:
    """A request gives its place back once, and is counted once, however it ends."""

    def test_of_an_answer(self, model: Model) -> None:
        bench = Bench(model)
        for request in (PIXELS, IMAGE, LARGE_IMAGE):
            assert bench.ask(request)
        bench.expect_ended(3)
        assert not bench.refusals()
        assert bench.inference.statistics.answered == 3

    @pytest.mark.parametrize("size_bytes", [0, QUICK_BYTES + 1])
    def test_of_a_message_that_cannot_be_parsed(self, model: Model, size_bytes: int) -> None:
        bench, ended = Bench(model), Future()

        def parse() -> None:
            raise MessageInvalid("no message")

        message = Unparsed(parse, size_bytes)
        Work(bench.inference, bench.service, message, Caller(), ended.set_result, lambda *_: None)
        assert isinstance(ended.result(WAIT_S), MessageInvalid)
        bench.expect_ended(1)
        assert bench.refusals() == {"MESSAGE_INVALID": 1}

    def test_of_images_that_are_none_or_too_large(self, model: Model) -> None:
        bench = Bench(model)
        with pytest.raises(ImageUnreadable):
            bench.ask(classifier_pb2.PredictRequest(image=b"none"))
        with pytest.raises(ImageUnreadable):
            bench.ask(classifier_pb2.PredictRequest(image=LARGE[:-200]))
        with pytest.raises(ImageNeedsTooMuchMemory):
            bench.ask(classifier_pb2.PredictRequest(image=encode(plain("red", (5000, 5000)))))
        bench.expect_ended(3)

    @pytest.mark.parametrize("request_", [PIXELS, IMAGE, LARGE_IMAGE])
    @pytest.mark.parametrize(
        ("caller", "error"), [(Caller(0), DeadlineExpired), (Caller(-1), DeadlineExpired), (None, RequestCancelled)]
    )
    def test_of_a_call_that_ended_on_arrival(
        self, held: Held, gate: Gate, request_: Any, caller: Caller | None, error: type[Exception]
    ) -> None:
        bench = Bench(held)
        if caller is None:
            caller = Caller()
            caller.cancel()
        with pytest.raises(error):
            bench.ask(request_, caller)
        bench.expect_ended(1)
        assert held.entered.empty()
        assert not gate.threads

    def test_of_a_reply_that_cannot_be_written(self, model: Model) -> None:
        bench = Bench(model)
        with patch.object(ImageClassifier, "rank", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
            bench.ask(PIXELS)
        bench.expect_ended(1)
        assert bench.ask(PIXELS)

    def test_of_one_too_many_gives_no_place_back_that_it_never_had(self, held: Held) -> None:
        bench = Bench(held, limits=Limits(max_queue=0))
        running = bench.begin(PIXELS)
        held.next_batch()
        with pytest.raises(QueueFull):
            bench.ask(PIXELS)
        assert bench.given_back == 0
        held.let_go()
        assert running.result(WAIT_S)
        bench.expect_ended(1)
        assert bench.refusals() == {"QUEUE_FULL": 1}


@pytest.mark.parametrize("late", [False, True])  # whether it ends before the turn of its decode thread is noted
@pytest.mark.parametrize("request_", [PIXELS, IMAGE, LARGE_IMAGE])
def test_a_request_that_has_ended_leaves_nothing_behind(model: Model, request_: Any, late: bool) -> None:
    """Without the help of the garbage collector, which comes late: else swapped models would pile up until then."""
    bench, passing, answered = Bench(model), [replace(model)], Future()
    gone = weakref.ref(passing[0])
    submit = bench.inference.budget.submit

    def submit_slowly(work: Callable[[], object], cost_bytes: int = 0) -> Any:
        turn = submit(work, cost_bytes)
        if threading.current_thread() is threading.main_thread():
            wait_until(lambda: bench.given_back == 1)
        return turn

    if late:
        bench.inference.budget.submit = submit_slowly
    gc.disable()
    try:
        with patch.object(bench.service, "find", lambda request: passing.pop()):
            message = Unparsed(lambda: request_, 0)
            work = Work(bench.inference, bench.service, message, Caller(), answered.set_result, lambda *_: None)
            assert answered.result(WAIT_S).scores
        wait_until(lambda: bench.given_back == 1)
        kept = weakref.ref(work)
        del work
        wait_until(lambda: gone() is None)
        assert kept() is None
    finally:
        gc.enable()
