"""Batching: no artificial delay, no lost slot, no mixed answers, no run for a cancelled call."""

from __future__ import annotations

import gc
import logging
import os
import random
import threading
import time
import weakref
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT, PROBABILITIES, Tensors
from evalmode.errors import DeadlineExpired, QueueFull, RequestCancelled
from evalmode.limits import Limits
from evalmode.runtime.cpus import count_cpus
from evalmode.runtime.model import ImageClassifier
from evalmode.runtime.provider import CUDA
from serving.engine.batch import BATCH_S
from serving.engine.batching import Answer, Batcher, Job, count_slots
from tests.serving.conftest import WAIT_S, BlockedModel, Caller, make_batcher, spawn, wait_until


def make_pixels(value: int) -> np.ndarray:
    """An image, uint8 (4, 4, 3), that differs for each value: its red channel is ``value``."""
    return np.full((4, 4, 3), (value, 0, 0), np.uint8)


def make_inputs(value: int) -> Tensors:
    """The image of a value as the inputs of a request."""
    return {INPUT: make_pixels(value)[np.newaxis]}


def read_values(batch: np.ndarray) -> list[int]:
    """The values of the images in a batch."""
    return batch[:, 0, 0, 0].tolist()


def release_and_read(blocked: BlockedModel, count: int) -> list[list[int]]:
    """Release a run and read the values of the next batch, ``count`` times."""
    batches = []
    for _ in range(count):
        blocked.release()
        batches.append(read_values(blocked.next_batch()))
    return batches


@pytest.fixture
def blocked(model: ImageClassifier) -> BlockedModel:
    return BlockedModel(model)


class Run(Future[Any]):
    """The outcome of a job. The job is withdrawn if its call is cancelled while it waits.

    Attributes:
        job: The job.
        caller: Its caller.
        ends: How often the job has ended.
    """

    def __init__(
        self, batcher: Batcher, model: Any, inputs: Tensors, call: Caller, optional: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.ends = 0
        started = time.perf_counter()
        self.job = Job(model, inputs, call, started, optional, reply=lambda answer: answer, done=self.end)
        self.caller, self._batcher = call, batcher
        call.works.append(self)

    def end(self, outcome: Answer | Exception) -> None:
        self.ends += 1
        if isinstance(outcome, Exception):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    def withdraw(self) -> None:
        if self._batcher.withdraw(self.job):
            self.end(RequestCancelled("withdrawn"))


def ask(
    batcher: Batcher,
    model: object,
    value: int,
    call: Caller | None = None,
    waits: bool = True,
    optional: tuple[str, ...] = (),
) -> Run:
    """Submit a job. With ``waits``, check that it waits in the queue."""
    run = Run(batcher, model, make_inputs(value), call or Caller(), optional)
    batcher.submit(run.job)
    assert run.job.waits or not waits
    return run


def expect_all_slots_free(batcher: Batcher, model: ImageClassifier) -> None:
    """Check that every slot is free: all of them run at the same time, and one more request waits."""
    blocked = BlockedModel(model)
    runs = [ask(batcher, blocked, value, waits=False) for value in range(batcher.slots)]
    assert sorted(value for _ in runs for value in read_values(blocked.next_batch())) == list(range(batcher.slots))
    runs.append(ask(batcher, blocked, batcher.slots))
    blocked.release(batcher.slots + 1)
    for run in runs:
        run.result(WAIT_S)


def test_a_free_slot_runs_at_once_and_alone(model: ImageClassifier, blocked: BlockedModel) -> None:
    batcher = make_batcher(3)
    runs = [ask(batcher, blocked, value, waits=False) for value in (1, 2, 3)]
    assert sorted(read_values(blocked.next_batch()) for _ in runs) == [[1], [2], [3]]
    blocked.release(3)
    for value, run in zip((1, 2, 3), runs, strict=True):
        answer = run.result(WAIT_S)
        assert np.array_equal(answer.outputs[PROBABILITIES][0], model.classify(make_pixels(value)[np.newaxis])[0][0])
        assert answer.wait_us >= 0
        assert answer.inference_us > 0


def test_waiting_requests_form_one_batch_in_order_of_arrival(model: ImageClassifier, blocked: BlockedModel) -> None:
    batcher = make_batcher()
    runs = [ask(batcher, blocked, 100, waits=False)]
    assert read_values(blocked.next_batch()) == [100]
    runs += [ask(batcher, blocked, value) for value in (20, 50, 80, 10)]
    blocked.release()
    assert read_values(blocked.next_batch()) == [20, 50, 80, 10]
    blocked.release()
    for value, run in zip((100, 20, 50, 80, 10), runs, strict=True):
        alone = model.classify(make_pixels(value)[np.newaxis])[0][0]
        assert np.array_equal(run.result(WAIT_S).outputs[PROBABILITIES][0], alone), value
    waited = [run.result().wait_us for run in runs[1:]]
    assert waited == sorted(waited, reverse=True)  # the first in the queue waited longest
    assert waited[-1] > 0
    assert len({run.result().inference_us for run in runs[1:]}) == 1
    expect_all_slots_free(batcher, model)


def test_requests_for_different_outputs_are_never_in_one_batch(mapped: ImageClassifier) -> None:
    batcher, blocked = make_batcher(), BlockedModel(mapped)
    runs = [ask(batcher, blocked, 0, waits=False)]
    blocked.next_batch()
    runs += [ask(batcher, blocked, value, optional=(ACTIVATION_MAP,) * (value % 2)) for value in range(1, 6)]
    assert release_and_read(blocked, 2) == [[1, 3, 5], [2, 4]]
    blocked.release(2)
    for value, run in enumerate(runs):
        outputs = run.result(WAIT_S).outputs
        assert (ACTIVATION_MAP in outputs) == (value % 2 == 1)
        if value % 2:
            assert np.allclose(outputs[ACTIVATION_MAP][0, 0], value / 25.5)


def test_a_request_is_alone_only_if_no_other_one_is_in_flight(blocked: BlockedModel) -> None:
    batcher = make_batcher(2)

    def answer(*values: int) -> None:
        runs = []
        for value in values:
            batcher.admit()
            runs.append(ask(batcher, blocked, value, waits=False))
            blocked.next_batch()
        blocked.release(len(values))
        for one in runs:
            one.result(WAIT_S)
            batcher.give_back()

    answer(1)
    answer(2, 3)
    batcher.admit()  # another request is being decoded
    answer(4)
    batcher.give_back()
    answer(5)
    assert blocked.alone == [True, True, False, False, True]


def test_a_queue_longer_than_max_batch_is_split(model: ImageClassifier, blocked: BlockedModel) -> None:
    batcher = make_batcher(1, Limits(max_batch=3))
    runs = [ask(batcher, blocked, 0, waits=False)]
    blocked.next_batch()
    runs += [ask(batcher, blocked, value) for value in range(1, 9)]
    batches = release_and_read(blocked, 3)
    blocked.release()
    assert batches == [[1, 2, 3], [4, 5, 6], [7, 8]]
    for value, run in enumerate(runs):
        alone = model.classify(make_pixels(value)[np.newaxis])[0][0]
        assert np.array_equal(run.result(WAIT_S).outputs[PROBABILITIES][0], alone)
    expect_all_slots_free(batcher, model)


def test_a_batch_is_limited_to_the_time_per_batch(model: ImageClassifier, blocked: BlockedModel) -> None:
    blocked.row_s = BATCH_S / 2.5
    batcher = make_batcher()
    runs = [ask(batcher, blocked, 0, waits=False)]
    blocked.next_batch()
    runs += [ask(batcher, blocked, value) for value in range(1, 6)]
    batches = release_and_read(blocked, 2)
    blocked.row_s = 10 * BATCH_S
    batches += release_and_read(blocked, 1)
    blocked.release()
    assert batches == [[1, 2], [3, 4], [5]]
    assert all(run.result(WAIT_S) for run in runs)
    expect_all_slots_free(batcher, model)


def test_a_batch_ends_before_the_deadline_of_each_of_its_requests(
    model: ImageClassifier, blocked: BlockedModel
) -> None:
    blocked.row_s = BATCH_S / 10
    batcher = make_batcher()
    runs = [ask(batcher, blocked, 0, waits=False)]
    blocked.next_batch()
    remaining = {1: 3600.0, 2: 2.5 * blocked.row_s, 3: 3600.0, 4: 3600.0}
    callers = {value: Caller() for value in remaining}
    runs += [ask(batcher, blocked, value, callers[value]) for value in remaining]
    for value, caller in callers.items():
        caller.remaining_s = remaining[value]
    batches = release_and_read(blocked, 2)
    blocked.release()
    assert batches == [[1, 2], [3, 4]]
    assert all(run.result(WAIT_S) for run in runs)
    expect_all_slots_free(batcher, model)


def test_a_request_that_cannot_end_before_its_deadline_is_not_begun(
    model: ImageClassifier, blocked: BlockedModel
) -> None:
    blocked.row_s = 0.5
    batcher = make_batcher()
    first = ask(batcher, blocked, 0, Caller(0.1), waits=False)  # a free slot tries
    assert read_values(blocked.next_batch()) == [0]
    late, early = Caller(), Caller()
    runs = {caller: ask(batcher, blocked, value, caller) for value, caller in ((1, late), (2, early))}
    late.remaining_s, early.remaining_s = 0.4, 0.6
    blocked.release()
    assert read_values(blocked.next_batch()) == [2]
    with pytest.raises(DeadlineExpired, match="passes in 400 ms, and the network needs 500 ms: the network did"):
        runs[late].result(WAIT_S)
    blocked.release()
    assert first.result(WAIT_S)
    assert runs[early].result(WAIT_S)
    expect_all_slots_free(batcher, model)


@pytest.mark.parametrize(
    ("is_cancelled", "remaining_s", "error"), [(True, 3600, RequestCancelled), (False, 0, DeadlineExpired)]
)
def test_cancelled_and_expired_requests_do_not_join_a_batch(
    model: ImageClassifier, blocked: BlockedModel, is_cancelled: bool, remaining_s: float, error: type[Exception]
) -> None:
    batcher = make_batcher()
    callers = [Caller() for _ in range(3)]
    runs = [ask(batcher, blocked, 0, waits=False)]
    blocked.next_batch()
    runs += [ask(batcher, blocked, value, caller) for value, caller in enumerate(callers, 1)]
    callers[1].is_cancelled, callers[1].remaining_s = is_cancelled, remaining_s  # without a withdrawal
    blocked.release()
    assert read_values(blocked.next_batch()) == [1, 3]
    blocked.release()
    with pytest.raises(error):
        runs[2].result(WAIT_S)
    assert all(runs[index].result(WAIT_S) for index in (0, 1, 3))
    expect_all_slots_free(batcher, model)


def test_a_model_with_max_batch_1_runs_each_request_alone(model: ImageClassifier, blocked: BlockedModel) -> None:
    blocked.max_batch = 1
    batcher = make_batcher()
    runs = [ask(batcher, blocked, 0, waits=False)]
    blocked.next_batch()
    runs += [ask(batcher, blocked, value) for value in (1, 2)]
    for value in (1, 2):
        blocked.release()
        assert read_values(blocked.next_batch()) == [value]
    blocked.release()
    assert all(run.result(WAIT_S) for run in runs)
    expect_all_slots_free(batcher, model)


def test_two_slots_share_the_queue(model: ImageClassifier, blocked: BlockedModel) -> None:
    batcher = make_batcher(2, Limits(max_batch=2))
    runs = [ask(batcher, blocked, value, waits=False) for value in (1, 2)]
    assert sorted(value for _ in runs for value in read_values(blocked.next_batch())) == [1, 2]
    runs += [ask(batcher, blocked, value) for value in (3, 4, 5)]
    blocked.release(2)
    assert sorted(read_values(blocked.next_batch()) for _ in range(2)) == [[3, 4], [5]]
    blocked.release(2)
    assert all(run.result(WAIT_S) for run in runs)
    expect_all_slots_free(batcher, model)


def test_requests_of_different_models_are_never_in_one_batch(model: ImageClassifier, blocked: BlockedModel) -> None:
    batcher = make_batcher()
    other = BlockedModel(model)
    runs = [ask(batcher, blocked, 0, waits=False)]
    blocked.next_batch()
    runs += [ask(batcher, which, value) for which, value in ((other, 1), (blocked, 2), (other, 3), (blocked, 4))]
    blocked.release()
    assert read_values(other.next_batch()) == [1, 3]
    assert blocked.entered.empty()
    other.release()
    assert read_values(blocked.next_batch()) == [2, 4]
    blocked.release()
    assert all(run.result(WAIT_S) for run in runs)
    expect_all_slots_free(batcher, model)


class TestAdmission:
    def test_is_refused_if_slots_and_queue_are_full(self) -> None:
        batcher = make_batcher(2, Limits(max_queue=1))
        assert [batcher.admit() for _ in range(3)] == [0, 1, 2]
        for refused in (batcher.admit, lambda: batcher.check(3600)):
            with pytest.raises(QueueFull, match="3 requests are in flight") as caught:
                refused()
            assert caught.value.facts == {"limit_requests": "3"}
        batcher.give_back()
        assert batcher.admit() == 2  # the place that was given back
        assert batcher.load().in_flight == 3

    def test_without_a_queue_is_limited_to_one_request_per_slot(self) -> None:
        batcher = make_batcher(limits=Limits(max_queue=0))
        assert not batcher.is_busy()
        batcher.admit()
        assert batcher.is_busy()
        with pytest.raises(QueueFull):
            batcher.admit()
        batcher.give_back()
        assert batcher.admit() == 0

    def test_is_refused_if_the_answer_would_miss_the_deadline(self) -> None:
        batcher = make_batcher()
        batcher.pace.note(1.0, ahead=0)
        assert batcher.admit(remaining_s=0.1) == 0  # a slot is free
        for refused in (batcher.admit, batcher.check):
            with pytest.raises(QueueFull, match="longer than the deadline of this request"):
                refused(1.5)
        assert batcher.admit(remaining_s=10) == 1


class TestDeadline:
    def test_that_expires_in_the_queue_prevents_the_run(self, model: ImageClassifier, blocked: BlockedModel) -> None:
        batcher = make_batcher()
        running = ask(batcher, blocked, 1, waits=False)
        blocked.next_batch()
        late, patient = Caller(), Caller()
        runs = [ask(batcher, blocked, 2, late), ask(batcher, blocked, 3, patient)]
        late.remaining_s = 0
        blocked.release()
        assert read_values(blocked.next_batch()) == [3]
        with pytest.raises(DeadlineExpired):
            runs[0].result(WAIT_S)
        blocked.release()
        assert running.result(WAIT_S)
        assert runs[1].result(WAIT_S)
        expect_all_slots_free(batcher, model)

    def test_that_has_expired_on_arrival_prevents_the_run(self, model: ImageClassifier, blocked: BlockedModel) -> None:
        batcher = make_batcher()
        for remaining_s in (0, -1):
            with pytest.raises(DeadlineExpired):
                ask(batcher, blocked, 1, Caller(remaining_s), waits=False).result(WAIT_S)
        assert blocked.entered.empty()
        expect_all_slots_free(batcher, model)

    def test_of_infinity_never_expires(self, model: ImageClassifier, blocked: BlockedModel) -> None:
        batcher = make_batcher()
        runs = [ask(batcher, blocked, 1, waits=False)]
        blocked.next_batch()
        runs.append(ask(batcher, blocked, 2, Caller(remaining_s=float("inf"))))
        blocked.release(2)
        assert all(run.result(WAIT_S) for run in runs)


class TestCancellation:
    def test_while_waiting_ends_the_request_at_once(self, model: ImageClassifier, blocked: BlockedModel) -> None:
        batcher = make_batcher()
        running = ask(batcher, blocked, 1, waits=False)
        blocked.next_batch()
        caller = Caller()
        waiting, other = ask(batcher, blocked, 2, caller), ask(batcher, blocked, 3)
        caller.cancel()
        with pytest.raises(RequestCancelled):
            waiting.result(WAIT_S)  # while the slot is still busy
        assert not running.done()
        blocked.release()
        assert read_values(blocked.next_batch()) == [3]
        blocked.release()
        assert running.result(WAIT_S)
        assert other.result(WAIT_S)
        expect_all_slots_free(batcher, model)

    def test_without_a_withdrawal_prevents_the_run(self, model: ImageClassifier, blocked: BlockedModel) -> None:
        batcher = make_batcher()
        running = ask(batcher, blocked, 1, waits=False)
        blocked.next_batch()
        callers = [Caller(), Caller()]
        runs = [ask(batcher, blocked, 2, callers[0]), ask(batcher, blocked, 3, callers[1])]
        for caller in callers:
            caller.is_cancelled = True  # without a withdrawal: the slot checks
        blocked.release()
        for run in runs:
            with pytest.raises(RequestCancelled):
                run.result(WAIT_S)
        assert running.result(WAIT_S)
        assert blocked.entered.empty()
        expect_all_slots_free(batcher, model)

    def test_on_arrival_prevents_the_run(self, model: ImageClassifier, blocked: BlockedModel) -> None:
        batcher = make_batcher()
        caller = Caller()
        caller.cancel()
        with pytest.raises(RequestCancelled):
            ask(batcher, blocked, 1, caller, waits=False).result(WAIT_S)
        assert blocked.entered.empty()
        expect_all_slots_free(batcher, model)

    def test_after_the_batch_has_begun_does_not_affect_other_requests(
        self, model: ImageClassifier, blocked: BlockedModel
    ) -> None:
        batcher = make_batcher()
        runs = [ask(batcher, blocked, 1, waits=False)]
        blocked.next_batch()
        callers = [Caller() for _ in range(3)]
        runs += [ask(batcher, blocked, value, caller) for value, caller in enumerate(callers, 2)]
        blocked.release()
        assert read_values(blocked.next_batch()) == [2, 3, 4]
        for caller in callers:
            caller.cancel()
        blocked.release()
        for value, run in enumerate(runs, 1):
            alone = model.classify(make_pixels(value)[np.newaxis])[0][0]
            assert np.array_equal(run.result(WAIT_S).outputs[PROBABILITIES][0], alone)
        expect_all_slots_free(batcher, model)


class Failing(BlockedModel):
    """A model whose runs raise after their release if their batch holds one of some values."""

    def __init__(self, model: ImageClassifier, *bad: int) -> None:
        super().__init__(model)
        self._bad = set(bad)

    def run(self, inputs: Tensors, *how: Any) -> Tensors:
        answer = super().run(inputs, *how)
        if self._bad & set(read_values(inputs[INPUT])):
            raise ValueError(f"no answer for {read_values(inputs[INPUT])}")
        return answer


class TestFailure:
    def test_in_a_batch_fails_only_the_request_that_caused_it(self, model: ImageClassifier) -> None:
        counted = []
        batcher = make_batcher(count_run=lambda model, inputs, us: counted.append(inputs))
        failing = Failing(model, 3)
        runs = [ask(batcher, failing, 1, waits=False)]
        failing.next_batch()
        runs += [ask(batcher, failing, value) for value in (2, 3, 4)]
        failing.release(5)
        assert [read_values(failing.next_batch()) for _ in range(4)] == [[2, 3, 4], [2], [3], [4]]
        with pytest.raises(ValueError, match=r"no answer for \[3\]"):
            runs.pop(2).result(WAIT_S)
        for value, run in zip((1, 2, 4), runs, strict=True):
            alone = model.classify(make_pixels(value)[np.newaxis])[0][0]
            assert np.array_equal(run.result(WAIT_S).outputs[PROBABILITIES][0], alone)
        assert counted == [1, 1, 1]  # failed runs are not counted
        expect_all_slots_free(batcher, model)

    def test_of_a_batch_does_not_rerun_cancelled_and_expired_requests(self, model: ImageClassifier) -> None:
        batcher = make_batcher()
        failing = Failing(model, 2)
        runs = [ask(batcher, failing, 1, waits=False)]
        failing.next_batch()
        callers = [Caller(), Caller(), Caller()]
        runs += [ask(batcher, failing, value, caller) for value, caller in zip((2, 3, 4), callers, strict=True)]
        failing.release()
        assert read_values(failing.next_batch()) == [2, 3, 4]
        callers[1].cancel()
        callers[2].remaining_s = 0
        failing.release(2)
        for run, error in zip(runs[1:], (ValueError, RequestCancelled, DeadlineExpired), strict=True):
            with pytest.raises(error):
                run.result(WAIT_S)
        assert read_values(failing.next_batch()) == [2]
        assert failing.entered.empty()
        expect_all_slots_free(batcher, model)

    def test_of_every_run_frees_the_slot(self, model: ImageClassifier) -> None:
        batcher = make_batcher()
        failing = Failing(model, 1, 2, 3)
        runs = [ask(batcher, failing, 1, waits=False)]
        failing.next_batch()
        runs += [ask(batcher, failing, value) for value in (2, 3)]
        failing.release(4)
        for run in runs:
            with pytest.raises(ValueError, match="no answer"):
                run.result(WAIT_S)
        expect_all_slots_free(batcher, model)


class TestReply:
    def test_that_cannot_be_made_fails_only_its_request(self, model: ImageClassifier, blocked: BlockedModel) -> None:
        batcher = make_batcher()
        runs = [ask(batcher, blocked, 1, waits=False)]
        blocked.next_batch()
        runs += [ask(batcher, blocked, value) for value in (2, 3, 4)]

        def fail(answer: Answer) -> None:
            raise ZeroDivisionError

        runs[2].job.reply = fail
        blocked.release(2)
        with pytest.raises(ZeroDivisionError):
            runs.pop(2).result(WAIT_S)
        assert all(run.result(WAIT_S) for run in runs)
        expect_all_slots_free(batcher, model)

    @pytest.mark.parametrize("is_cancelled", [False, True])
    def test_that_cannot_be_delivered_is_logged_and_affects_neither_other_requests_nor_the_slot(
        self, model: ImageClassifier, blocked: BlockedModel, is_cancelled: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        batcher = make_batcher()
        runs = [ask(batcher, blocked, 1, waits=False)]
        blocked.next_batch()
        runs += [ask(batcher, blocked, value) for value in (2, 3)]

        def fail(outcome: object) -> None:
            raise ValueError("of the transport")

        for run in runs[:2]:
            run.job.done = fail
            run.caller.is_cancelled = is_cancelled
        blocked.release(2)
        with caplog.at_level(logging.ERROR):
            assert runs[2].result(WAIT_S)
        assert [str(record.exc_info and record.exc_info[1]) for record in caplog.records] == ["of the transport"] * 2
        expect_all_slots_free(batcher, model)


class TestWithdrawal:
    def test_of_a_waiting_job_removes_it_from_the_queue(self, model: ImageClassifier, blocked: BlockedModel) -> None:
        batcher = make_batcher()
        running = ask(batcher, blocked, 1, waits=False)
        blocked.next_batch()
        runs = [ask(batcher, blocked, value) for value in (2, 3)]
        assert batcher.load().waiting == 2
        assert batcher.withdraw(runs[0].job)
        assert not batcher.withdraw(runs[0].job)  # once
        assert batcher.load().waiting == 1
        blocked.release()
        assert read_values(blocked.next_batch()) == [3]
        blocked.release()
        assert running.result(WAIT_S)
        assert runs[1].result(WAIT_S)
        expect_all_slots_free(batcher, model)
        assert runs[0].ends == 0  # the caller of withdraw ends the request

    def test_of_a_running_job_does_nothing(self, model: ImageClassifier, blocked: BlockedModel) -> None:
        batcher = make_batcher()
        runs = [ask(batcher, blocked, 1, waits=False)]
        blocked.next_batch()
        runs.append(ask(batcher, blocked, 2))
        assert not batcher.withdraw(runs[0].job)
        blocked.release()
        assert read_values(blocked.next_batch()) == [2]
        assert not batcher.withdraw(runs[1].job)
        blocked.release()
        assert all(run.result(WAIT_S) for run in runs)
        assert not any(batcher.withdraw(run.job) for run in runs)
        expect_all_slots_free(batcher, model)

    def test_of_a_job_left_for_the_next_batch_removes_it_from_the_queue(
        self, model: ImageClassifier, blocked: BlockedModel
    ) -> None:
        batcher = make_batcher(limits=Limits(max_batch=1))
        runs = [ask(batcher, blocked, 1, waits=False)]
        blocked.next_batch()
        runs += [ask(batcher, blocked, value) for value in (2, 3)]
        assert release_and_read(blocked, 1) == [[2]]
        runs.pop().withdraw()
        blocked.release()
        assert all(run.result(WAIT_S) for run in runs)
        expect_all_slots_free(batcher, model)
        assert blocked.entered.empty()


def test_slots_end_when_the_batcher_is_closed() -> None:
    before = set(threading.enumerate())
    batcher = make_batcher(3)
    slots = set(threading.enumerate()) - before
    assert sorted(thread.name for thread in slots) == ["slot-0", "slot-1", "slot-2"]
    batcher.close()
    wait_until(lambda: not any(thread.is_alive() for thread in slots))


class Echo:
    """A network of dynamic shape that returns its input."""

    max_batch = 64

    def __init__(self, blocked: BlockedModel) -> None:
        self._blocked, self.expect_s = blocked, blocked.expect_s

    def run(self, inputs: Tensors, *how: Any) -> Tensors:
        self._blocked.entered.put(inputs[INPUT])
        return dict(inputs)


def test_inputs_of_different_shapes_are_never_in_one_batch(model: ImageClassifier, blocked: BlockedModel) -> None:
    batcher = make_batcher()
    running = ask(batcher, blocked, 1, waits=False)
    blocked.next_batch()
    echo, callers = Echo(blocked), [Caller() for _ in range(4)]
    sent = [np.full((1, side), side, np.float32) for side in (3, 5, 3, 5)]
    runs = []
    for array, caller in zip(sent, callers, strict=True):
        runs.append(Run(batcher, echo, {INPUT: array}, caller))
        batcher.submit(runs[-1].job)
    blocked.release()
    assert running.result(WAIT_S)
    for array, run in zip(sent, runs, strict=True):
        assert np.array_equal(run.result(WAIT_S).outputs[INPUT], array)
    assert [batch.shape for batch in (blocked.next_batch(), blocked.next_batch())] == [(2, 3), (2, 5)]
    expect_all_slots_free(batcher, model)


def test_no_request_is_lost_while_many_clients_cancel_at_random(model: ImageClassifier) -> None:
    slots, threads, requests = 2, 32, 50
    batcher = make_batcher(slots, Limits(max_batch=5, max_queue=threads - slots))
    expected = [model.classify(make_pixels(value)[np.newaxis])[0][0] for value in range(256)]
    largest = 0

    class Counting:
        """Records the size of the largest batch."""

        max_batch, expect_s = 64, model.expect_s

        def run(self, inputs: Tensors, *how: Any) -> Tensors:
            nonlocal largest
            largest = max(largest, len(inputs[INPUT]))
            return model.run(inputs, *how)

    counting = Counting()
    start = threading.Barrier(threads)

    def client(seed: int) -> tuple[int, int]:
        chance = random.Random(seed)
        answered = cancelled = 0
        start.wait(WAIT_S)
        for _ in range(requests):
            caller, value = Caller(), chance.randrange(256)
            if chance.random() < 0.3:
                # Cancels at a random moment: before the request, while it waits, while it runs, or after it.
                timer = threading.Timer(chance.uniform(0, 0.004), caller.cancel)
                timer.start()
            else:
                timer = None
            batcher.admit()
            run = ask(batcher, counting, value, caller, waits=False)
            try:
                answer = run.result(WAIT_S)
            except RequestCancelled:
                assert caller.is_cancelled
                cancelled += 1
            else:
                assert np.array_equal(answer.outputs[PROBABILITIES][0], expected[value])
                answered += 1
            batcher.give_back()
            if timer is not None:
                timer.join()
            assert run.ends == 1
        return answered, cancelled

    clients = [spawn(client, seed) for seed in range(threads)]
    counts = [client.result(WAIT_S) for client in clients]
    assert sum(map(sum, counts)) == threads * requests
    assert sum(answered for answered, _ in counts) >= threads * requests * 0.7
    assert 1 <= largest <= 5
    expect_all_slots_free(batcher, model)
    assert batcher.load()._replace(slots_busy=0) == (slots, 0, 0, 0)
    assert [batcher.admit() for _ in range(threads)] == list(range(threads))
    with pytest.raises(QueueFull):
        batcher.admit()


def write_files(root: Path, texts: dict[str, str]) -> None:
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


class TestCountCpus:
    @pytest.fixture(autouse=True)
    def eight_cpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))

    @pytest.mark.parametrize(
        ("limit", "cpus"),
        [
            ("50000 100000\n", 1),
            ("100000 100000\n", 1),
            ("150000 100000\n", 2),
            ("400000 100000\n", 4),
            ("1600000 100000\n", 8),
            ("max 100000\n", 8),
            ("garbage\n", 8),
            ("", 8),
        ],
    )
    def test_is_limited_to_the_quota_of_cgroup_v2(self, tmp_path: Path, limit: str, cpus: int) -> None:
        write_files(tmp_path, {"sys/fs/cgroup/cpu.max": limit})
        assert count_cpus(tmp_path) == cpus

    @pytest.mark.parametrize(("quota", "cpus"), [("50000", 1), ("250000", 3), ("-1", 8), ("900000", 8)])
    def test_is_limited_to_the_quota_of_cgroup_v1(self, tmp_path: Path, quota: str, cpus: int) -> None:
        folder = "sys/fs/cgroup/cpu"
        write_files(tmp_path, {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000\n"})
        assert count_cpus(tmp_path) == cpus

    @pytest.mark.parametrize(
        ("quotas", "cpus"),
        [
            ({"a/b": "200000 100000"}, 2),
            ({"a": "200000 100000"}, 2),
            ({"": "300000 100000", "a": "200000 100000", "a/b": "max 100000"}, 2),
            ({"": "300000 100000", "a": "max 100000", "a/b": "500000 100000"}, 3),
            ({"other": "100000 100000"}, 8),
        ],
    )
    def test_is_limited_to_the_smallest_quota_of_all_parents(
        self, tmp_path: Path, quotas: dict[str, str], cpus: int
    ) -> None:
        files = {f"sys/fs/cgroup/{path}/cpu.max": quota for path, quota in quotas.items()}
        write_files(tmp_path, {"proc/self/cgroup": "0::/a/b\n", **files})
        assert count_cpus(tmp_path) == cpus

    @pytest.mark.parametrize("folder", ["a/b", "a", ""])  # the last: a container that sees the path of the host
    def test_is_limited_to_the_quota_of_the_parents_in_cgroup_v1(self, tmp_path: Path, folder: str) -> None:
        cgroups = "5:memory:/x\n4:cpu,cpuacct:/a/b\n2:cpuset:/\n0::/a\n"
        files = {f"sys/fs/cgroup/cpu/{folder}/cpu.cfs_{name}_us": us for name, us in (("quota", "2"), ("period", "1"))}
        write_files(tmp_path, {"proc/self/cgroup": cgroups, **files})
        assert count_cpus(tmp_path) == 2

    def test_without_a_cgroup_is_the_affinity(self, tmp_path: Path) -> None:
        assert count_cpus(tmp_path) == 8


def test_this_process_has_at_least_one_cpu() -> None:
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)


def test_a_model_on_a_gpu_has_one_slot(model: ImageClassifier) -> None:
    assert count_slots([model]) == count_slots([]) == count_cpus()
    assert count_slots([model, replace(model, provider=CUDA)]) == 1


def test_an_answered_request_is_not_referenced(model: ImageClassifier) -> None:
    """Without the garbage collector, which runs late: swapped models would accumulate until then."""
    batcher, passing = make_batcher(), replace(model)
    reference = weakref.ref(passing)
    gc.disable()
    try:
        run = ask(batcher, passing, 1, waits=False)
        run.result(WAIT_S)
        del run.job, passing, run
        wait_until(lambda: reference() is None)
    finally:
        gc.enable()


def test_requests_set_aside_do_not_count_in_admission() -> None:
    batcher = make_batcher(1, Limits(max_queue=3))
    batcher.pace.note(1.0, 0)
    for _ in range(3):
        batcher.admit()
    with pytest.raises(QueueFull, match="longer"):
        batcher.check(2.0)
    for _ in range(3):
        batcher.set_aside()
    assert not batcher.is_busy()
    batcher.check(2.0)
    assert batcher.admit(2.0) == 0  # no request is ahead
    with pytest.raises(QueueFull, match="4 requests are in flight"):
        batcher.admit()
    for _ in range(3):
        batcher.give_back(aside=True)
    batcher.give_back()
    assert batcher.load().in_flight == 0
    assert batcher.admit() == 0
