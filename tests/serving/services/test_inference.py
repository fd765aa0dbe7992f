"""The path of a request from message to reply: the thread of each step, and exactly one end after a withdrawal."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
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
from evalmode.runtime.model import ImageClassifier
from evalmode.wire import classifier_pb2, open_inference_pb2
from serving.engine.decodes import MIB
from serving.engine.job import Step
from serving.engine.scheduler import Load
from serving.services.classifier import Classifier
from serving.services.inference import QUICK_BYTES, Inference, Unparsed, Work
from serving.services.models import Models
from serving.services.open_inference import OpenInference
from serving.services.source import Source
from serving.services.statistics import Statistics
from tests.conftest import encode, plain
from tests.serving.conftest import WAIT_S, BlockedModel, Caller, Direct, make_executor, wait_until

RED = np.full((1, 4, 4, 3), (255, 0, 0), np.uint8)
SMALL, LARGE = encode(plain("red")), encode(plain("red", (2200, 2200)))
PIXELS = classifier_pb2.PredictRequest(pixels=classifier_pb2.Pixels(data=RED.tobytes(), height=4, width=4, channels=3))
IMAGE, LARGE_IMAGE = (classifier_pb2.PredictRequest(image=image) for image in (SMALL, LARGE))


def infer(timeout_us: int = 0, images: tuple[bytes, ...] = ()) -> open_inference_pb2.ModelInferRequest:
    """A request of pixels or of images, with an optional ``timeout`` parameter."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": RED.shape}
    request = open_inference_pb2.ModelInferRequest(inputs=[tensor], raw_input_contents=[RED.tobytes()])
    if images:
        request.inputs[0].datatype = "BYTES"
        request.inputs[0].shape[:] = [len(images)]
        request.raw_input_contents[:] = [b"".join(len(image).to_bytes(4, "little") + image for image in images)]
    if timeout_us:
        request.parameters["timeout"].int64_param = timeout_us
    return request


def keep(reply: Any) -> Any:
    """The conversion of a reply that a transport passes on as it is."""
    return reply


class Gate:
    """Replaces the decoder: records the thread of each call, and blocks until it is opened."""

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
def blocked(model: ImageClassifier) -> BlockedModel:
    return BlockedModel(model)


class Pipeline(Direct):
    """A service with memory for one large image; counts ended requests."""

    def __init__(
        self, model: Any, service: str = "classifier", limits: Limits | None = None, slots: int = 1, deadline_s: int = 0
    ) -> None:
        limits, statistics = limits or Limits(), Statistics()
        self.executor = executor = make_executor(slots, limits, 64 * MIB, count_run=statistics.count_run)
        models = Models({model.name: (model,)}, Source(Path()))
        inference = Inference(executor, statistics, deadline_s)
        super().__init__(
            Classifier(models, limits, executor.decodes)
            if service == "classifier"
            else OpenInference(models, inference, limits),
            inference,
        )
        self.given_back = 0
        leave = executor.leave

        def count(*arguments: Any, **options: Any) -> None:
            self.given_back += 1
            leave(*arguments, **options)

        executor.leave = count  # type: ignore[method-assign]

    def refusals(self) -> dict[str, int]:
        """The number of refused requests by reason."""
        counts = self.inference.statistics.counts.values()
        return {reason: number for each in counts for (_, reason), number in each.codes.items() if reason}

    def wait_until_queued(self) -> None:
        """Wait until one request waits."""
        wait_until(lambda: self.executor.load().waiting == 1)

    def expect_ended(self, requests: int) -> None:
        """Check that every place was given back exactly once, and that no request holds a resource."""
        assert self.given_back == requests
        slots, decodes = self.executor.slots, self.executor.decodes
        wait_until(lambda: self.executor.load() == Load(slots, 0, 0, 0))
        wait_until(lambda: (decodes._slots.busy, decodes._free_bytes) == (0, decodes.max_bytes))


@dataclass(frozen=True)
class Withdrawal:
    """The reason of a withdrawal and its error.

    Attributes:
        is_cancelled: Whether the call is cancelled; otherwise its deadline has expired.
        error: The error that the request ends with.
        words: A part of its message.
    """

    is_cancelled: bool
    error: type[Exception]
    words: str

    def apply(self, caller: Caller) -> None:
        if self.is_cancelled:
            caller.cancel()
        else:  # gRPC may cancel slightly before the deadline by this clock
            caller.remaining_s = 0.001
            for work in caller.works:
                work.withdraw()


WITHDRAWALS = [
    Withdrawal(True, RequestCancelled, "cancelled"),
    Withdrawal(False, DeadlineExpired, "while waiting for"),
]


@pytest.mark.parametrize("withdrawal", WITHDRAWALS, ids=["cancelled", "expired"])
class TestWithdrawal:
    """Of a request whose call is cancelled or whose deadline has expired."""

    @pytest.mark.parametrize("request_", [IMAGE, LARGE_IMAGE], ids=["small", "large"])
    def test_while_waiting_to_decode_ends_the_request_at_once(
        self, model: ImageClassifier, gate: Gate, withdrawal: Withdrawal, request_: classifier_pb2.PredictRequest
    ) -> None:
        pipeline, caller = Pipeline(model), Caller()
        running = pipeline.begin(request_)
        wait_until(lambda: len(gate.threads) == 1)
        waiting = pipeline.begin(request_, caller)
        pipeline.wait_until_queued()
        withdrawal.apply(caller)
        with pytest.raises(withdrawal.error, match=withdrawal.words):
            waiting.result(0)
        withdrawal.apply(caller)  # a second withdrawal does nothing
        gate.open.set()
        assert running.result(WAIT_S)
        pipeline.expect_ended(2)
        assert len(gate.threads) == 1
        assert sum(pipeline.refusals().values()) == 1

    def test_while_waiting_for_a_slot_ends_the_request_at_once(
        self, blocked: BlockedModel, withdrawal: Withdrawal
    ) -> None:
        pipeline, caller = Pipeline(blocked), Caller()
        running = pipeline.begin(PIXELS)
        blocked.next_batch()
        waiting = pipeline.begin(PIXELS, caller)
        withdrawal.apply(caller)
        with pytest.raises(withdrawal.error, match=withdrawal.words):
            waiting.result(0)
        withdrawal.apply(caller)
        blocked.release()
        assert running.result(WAIT_S)
        pipeline.expect_ended(2)
        assert blocked.entered.empty()

    def test_while_decoding_ends_the_request_after_decoding(
        self, blocked: BlockedModel, gate: Gate, withdrawal: Withdrawal
    ) -> None:
        pipeline, caller = Pipeline(blocked, slots=2), Caller()
        running = pipeline.begin(PIXELS)
        blocked.next_batch()
        decoding = pipeline.begin(IMAGE, caller)
        wait_until(lambda: len(gate.threads) == 1)
        withdrawal.apply(caller)
        assert not decoding.done()
        gate.open.set()
        with pytest.raises(withdrawal.error, match=withdrawal.words):
            decoding.result(WAIT_S)
        blocked.release()
        assert running.result(WAIT_S)
        pipeline.expect_ended(2)

    def test_while_running_does_nothing(self, blocked: BlockedModel, withdrawal: Withdrawal) -> None:
        pipeline, caller = Pipeline(blocked), Caller()
        running = pipeline.begin(PIXELS, caller)
        blocked.next_batch()
        withdrawal.apply(caller)
        blocked.release()
        assert running.result(WAIT_S)
        withdrawal.apply(caller)
        pipeline.expect_ended(1)
        assert not pipeline.refusals()


def test_a_withdrawal_between_reading_and_queueing_is_not_lost(model: ImageClassifier, gate: Gate) -> None:
    pipeline, caller = Pipeline(model), Caller()
    running = pipeline.begin(LARGE_IMAGE)
    wait_until(lambda: len(gate.threads) == 1)
    begin, reading, go_on = pipeline.service.begin, threading.Event(), threading.Event()

    def begin_slowly(*arguments: Any) -> Any:
        read = begin(*arguments)
        reading.set()
        assert go_on.wait(WAIT_S)
        return read

    pipeline.service.begin = begin_slowly
    waiting = pipeline.begin(LARGE_IMAGE, caller)
    assert reading.wait(WAIT_S)
    caller.cancel()
    go_on.set()
    with pytest.raises(RequestCancelled):
        waiting.result(WAIT_S)
    assert not running.done()  # the memory was in use all the time
    gate.open.set()
    assert running.result(WAIT_S)
    pipeline.expect_ended(2)


class TestTimeoutParameter:
    def test_ends_the_wait_for_a_slot(self, blocked: BlockedModel) -> None:
        pipeline = Pipeline(blocked, "open_inference")
        running = pipeline.begin(infer())
        blocked.next_batch()
        with pytest.raises(DeadlineExpired, match="while waiting for a slot"):
            pipeline.ask(infer(timeout_us=20_000))
        assert not running.done()
        blocked.release()
        assert running.result(WAIT_S)
        pipeline.expect_ended(2)
        assert pipeline.refusals() == {"DEADLINE_EXPIRED": 1}

    def test_ends_the_wait_for_memory(self, model: ImageClassifier, gate: Gate) -> None:
        pipeline = Pipeline(model, "open_inference")
        running = pipeline.begin(infer(images=(LARGE,)))
        wait_until(lambda: len(gate.threads) == 1)
        with pytest.raises(DeadlineExpired, match="memory to decode in"):
            pipeline.ask(infer(timeout_us=20_000, images=(LARGE,)))
        assert not running.done()
        gate.open.set()
        assert running.result(WAIT_S)
        pipeline.expect_ended(2)

    def test_that_expires_while_decoding_skips_the_remaining_images(self, model: ImageClassifier, gate: Gate) -> None:
        pipeline = Pipeline(model, "open_inference")
        decoding = pipeline.begin(infer(timeout_us=50_000, images=(SMALL, SMALL)))
        wait_until(lambda: gate.threads)
        passed = time.monotonic() + 0.1
        wait_until(lambda: time.monotonic() > passed)
        gate.open.set()
        with pytest.raises(DeadlineExpired):
            decoding.result(WAIT_S)
        assert len(gate.threads) == 1
        pipeline.expect_ended(1)

    def test_whose_timer_fires_early_is_kept(self, blocked: BlockedModel) -> None:
        """Timers of event loops may fire early, by rounding."""
        pipeline, timers = Pipeline(blocked, "open_inference"), []
        pipeline.begin(infer())
        blocked.next_batch()
        waiting: Future[Any] = Future()
        work = Work(
            pipeline.inference,
            pipeline.service,
            Unparsed(lambda: infer(50_000), 0, keep),
            Caller(),
            waiting.set_result,
            lambda *timer: timers.append(timer),
        )
        seconds, fire = timers.pop()
        assert 0 < seconds <= 0.05
        fire()
        if not waiting.done():
            assert len(timers) == 1  # the rest
            until = time.monotonic() + seconds
            wait_until(lambda: time.monotonic() > until)
            timers.pop()[1]()
        assert isinstance(waiting.result(0), DeadlineExpired)
        assert isinstance(work, Work)
        blocked.release()

    def test_sets_no_further_timer_after_the_request_has_ended(self, model: ImageClassifier) -> None:
        pipeline, timers = Pipeline(model, "open_inference"), []
        answered: Future[Any] = Future()
        Work(
            pipeline.inference,
            *(pipeline.service, Unparsed(lambda: infer(3600 * 10**6), 0, keep), Caller(), answered.set_result),
            lambda *timer: timers.append(timer),
        )
        assert answered.result(WAIT_S).model_name == "colours"
        ((seconds, fire),) = timers
        assert seconds <= 1
        wait_until(lambda: pipeline.given_back == 1)
        fire()
        assert len(timers) == 1  # no further timer

    def test_over_a_second_is_split_into_several_timers(self, blocked: BlockedModel) -> None:
        pipeline, timers, now = Pipeline(blocked, "open_inference"), [], time.monotonic()
        pipeline.begin(infer())
        blocked.next_batch()
        ended: Future[Any] = Future()
        with patch("serving.services.open_inference.time.monotonic", lambda: now):
            Work(
                pipeline.inference,
                *(pipeline.service, Unparsed(lambda: infer(2_500_000), 0, keep), Caller(), ended.set_result),
                lambda *timer: timers.append(timer),
            )
            for wanted in (1, 1, 0.5):
                seconds, fire = timers.pop()
                assert seconds == pytest.approx(wanted, abs=1e-3)
                assert not ended.done()
                now += seconds + 1e-6
                fire()
        assert isinstance(ended.result(0), DeadlineExpired)
        assert not timers
        blocked.release()


class TestDefaultDeadline:
    """The deadline of calls without one."""

    def test_ends_the_wait(self, blocked: BlockedModel) -> None:
        pipeline, timers, now = Pipeline(blocked, deadline_s=3), [], time.monotonic()
        pipeline.begin(PIXELS)
        blocked.next_batch()
        ended: Future[Any] = Future()
        with patch("serving.services.inference.time.monotonic", lambda: now):
            Work(
                pipeline.inference,
                *(pipeline.service, Unparsed(lambda: PIXELS, 0, keep), Caller(math.inf), ended.set_result),
                lambda *timer: timers.append(timer),
            )
            for _ in range(3):
                seconds, fire = timers.pop()
                assert seconds == pytest.approx(1, abs=1e-3)
                assert not ended.done()
                now += seconds + 1e-6
                fire()
        with pytest.raises(DeadlineExpired, match="while waiting for a slot"):
            raise ended.result(0)
        assert not timers
        blocked.release()

    @pytest.mark.parametrize(("deadline_s", "remaining_s"), [(3, 3600.0), (0, math.inf)])
    def test_is_not_set_for_a_call_with_a_deadline_or_if_it_is_off(
        self, model: ImageClassifier, deadline_s: int, remaining_s: float
    ) -> None:
        pipeline, timers, answered = Pipeline(model, deadline_s=deadline_s), [], Future[Any]()
        Work(
            pipeline.inference,
            *(pipeline.service, Unparsed(lambda: PIXELS, 0, keep), Caller(remaining_s), answered.set_result),
            lambda *timer: timers.append(timer),
        )
        assert answered.result(WAIT_S).scores
        assert not timers


class TestThreads:
    """The thread of each step."""

    @pytest.mark.parametrize(
        ("size_bytes", "request_", "place"),
        [
            (0, PIXELS, ("caller", 0)),
            (QUICK_BYTES, PIXELS, ("caller", 0)),
            (QUICK_BYTES + 1, PIXELS, ("slot", 1)),
            (32 * MIB, PIXELS, ("large", 0)),
            (10**12, PIXELS, ("large", 0)),  # the decompressed size may exceed the memory
            (0, IMAGE, ("caller", 0)),
        ],
    )
    def test_a_large_message_is_parsed_in_a_slot(
        self, model: ImageClassifier, size_bytes: int, request_: Any, place: tuple[str, int]
    ) -> None:
        pipeline, parsed, answered = Pipeline(model), [], Future[Any]()

        def parse() -> Any:
            is_caller = threading.current_thread() is threading.main_thread()
            thread = "caller" if is_caller else threading.current_thread().name.rpartition("-")[0]
            parsed.append((thread, pipeline.executor.load().slots_busy))
            return request_

        message = Unparsed(parse, size_bytes, keep)
        Work(pipeline.inference, pipeline.service, message, Caller(), answered.set_result, lambda *_: None)
        assert answered.result(WAIT_S).scores[0].label == "red"
        assert parsed == [place]
        pipeline.expect_ended(1)

    @pytest.mark.parametrize(("image", "place"), [(SMALL, ("slot", 1)), (LARGE, ("large", 0))])
    @pytest.mark.parametrize("service", ["classifier", "open_inference"])
    @pytest.mark.parametrize("size_bytes", [0, QUICK_BYTES + 1])
    def test_an_image_is_decoded_in_a_slot_of_its_size(
        self, model: ImageClassifier, gate: Gate, image: bytes, place: tuple[str, int], service: str, size_bytes: int
    ) -> None:
        pipeline = Pipeline(model, service)
        request = classifier_pb2.PredictRequest(image=image) if service == "classifier" else infer(images=(image,))
        answer = pipeline.begin(request, size_bytes=size_bytes)
        wait_until(lambda: gate.threads)
        thread, slots_busy = place
        wait_until(lambda: pipeline.executor.load().slots_busy == slots_busy)
        gate.open.set()
        assert answer.result(WAIT_S)
        assert gate.threads == [thread]
        pipeline.expect_ended(1)


class TestEnd:
    """A request gives its place back once and is counted once, whatever its outcome."""

    def test_of_an_answer(self, model: ImageClassifier) -> None:
        pipeline = Pipeline(model)
        for request in (PIXELS, IMAGE, LARGE_IMAGE):
            assert pipeline.ask(request)
        pipeline.expect_ended(3)
        assert not pipeline.refusals()
        assert pipeline.inference.statistics.answered == 3

    @pytest.mark.parametrize("size_bytes", [0, QUICK_BYTES + 1])
    def test_of_a_message_that_cannot_be_parsed(self, model: ImageClassifier, size_bytes: int) -> None:
        pipeline, ended = Pipeline(model), Future[Any]()

        def parse() -> None:
            raise MessageInvalid("damaged")

        message = Unparsed(parse, size_bytes, keep)
        Work(pipeline.inference, pipeline.service, message, Caller(), ended.set_result, lambda *_: None)
        assert isinstance(ended.result(WAIT_S), MessageInvalid)
        pipeline.expect_ended(1)
        assert pipeline.refusals() == {"MESSAGE_INVALID": 1}

    def test_of_unreadable_or_too_large_images(self, model: ImageClassifier) -> None:
        pipeline = Pipeline(model)
        with pytest.raises(ImageUnreadable):
            pipeline.ask(classifier_pb2.PredictRequest(image=b"none"))
        with pytest.raises(ImageUnreadable):
            pipeline.ask(classifier_pb2.PredictRequest(image=LARGE[:-200]))
        with pytest.raises(ImageNeedsTooMuchMemory):
            pipeline.ask(classifier_pb2.PredictRequest(image=encode(plain("red", (5000, 5000)))))
        pipeline.expect_ended(3)

    @pytest.mark.parametrize("request_", [PIXELS, IMAGE, LARGE_IMAGE])
    @pytest.mark.parametrize(
        ("caller", "error"), [(Caller(0), DeadlineExpired), (Caller(-1), DeadlineExpired), (None, RequestCancelled)]
    )
    def test_of_a_call_that_was_cancelled_or_expired_on_arrival(
        self, blocked: BlockedModel, gate: Gate, request_: Any, caller: Caller | None, error: type[Exception]
    ) -> None:
        pipeline = Pipeline(blocked)
        if caller is None:
            caller = Caller()
            caller.cancel()
        with pytest.raises(error):
            pipeline.ask(request_, caller)
        pipeline.expect_ended(1)
        assert blocked.entered.empty()
        assert not gate.threads

    def test_of_a_reply_that_cannot_be_written(self, model: ImageClassifier) -> None:
        pipeline = Pipeline(model)
        with patch.object(ImageClassifier, "rank", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
            pipeline.ask(PIXELS)
        pipeline.expect_ended(1)
        assert pipeline.ask(PIXELS)

    def test_of_a_request_refused_by_admission_gives_no_place_back(self, blocked: BlockedModel) -> None:
        pipeline = Pipeline(blocked, limits=Limits(max_queue=0))
        running = pipeline.begin(PIXELS)
        blocked.next_batch()
        with pytest.raises(QueueFull):
            pipeline.ask(PIXELS)
        assert pipeline.given_back == 0
        blocked.release()
        assert running.result(WAIT_S)
        pipeline.expect_ended(1)
        assert pipeline.refusals() == {"QUEUE_FULL": 1}


@pytest.mark.parametrize("late", [False, True])  # whether it ends before submit returns
@pytest.mark.parametrize("request_", [PIXELS, IMAGE, LARGE_IMAGE])
def test_an_ended_request_is_not_referenced(model: ImageClassifier, request_: Any, late: bool) -> None:
    """Without the garbage collector, which runs late: swapped models would accumulate until then."""
    pipeline, passing, answered = Pipeline(model), [replace(model)], Future[Any]()
    reference = weakref.ref(passing[0])
    submit = pipeline.executor.submit

    def submit_slowly(step: Step) -> None:
        submit(step)
        if threading.current_thread() is threading.main_thread():
            wait_until(lambda: pipeline.given_back == 1)

    if late:
        pipeline.executor.submit = submit_slowly  # type: ignore[method-assign]
    gc.disable()
    try:
        with patch.object(pipeline.service, "find", lambda request: passing.pop()):
            message = Unparsed(lambda: request_, 0, keep)
            work = Work(pipeline.inference, pipeline.service, message, Caller(), answered.set_result, lambda *_: None)
            assert answered.result(WAIT_S).scores
        wait_until(lambda: pipeline.given_back == 1)
        kept = weakref.ref(work)
        del work
        wait_until(lambda: reference() is None)
        assert kept() is None
    finally:
        gc.enable()
