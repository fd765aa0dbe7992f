"""The threads of the executor: no lost request, no mixed answers, no slot that an error keeps busy."""

from __future__ import annotations

import gc
import logging
import queue
import random
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import pytest

from evalmode.artifact.tensors import Tensors
from evalmode.errors import DeadlineExpired, QueueFull, RequestCancelled
from evalmode.limits import Limits
from serving.engine.decodes import MIB, SMALL_BYTES
from serving.engine.executor import Answer, Executor, Request, make_run
from serving.engine.job import Decode, Job
from serving.engine.scheduler import Load
from tests.serving.conftest import WAIT_S, Caller, make_executor, spawn, wait_until
from tests.serving.engine.bench import InAll

LARGE_BYTES = SMALL_BYTES + 1


class Doubling:
    """A network that doubles its input, and fails if it holds a value of ``bad``.

    Attributes:
        begun: The values of each run, in the order in which they began.
        alone: For each run, whether its request was alone.
        open: Runs block until it is set.
    """

    max_slots = 0

    def __init__(self, *bad: int, max_batch: int = 64) -> None:
        self.begun: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self.alone: list[bool] = []
        self.open = threading.Semaphore(0)
        self.max_batch, self._bad = max_batch, set(bad)

    def expect_s(self, rows: int) -> float:
        return 0.0

    def run(self, inputs: Tensors, optional: tuple[str, ...] = (), alone: bool = False) -> Tensors:
        values = inputs["x"][:, 0].tolist()
        self.alone.append(alone)
        self.begun.put(values)
        assert self.open.acquire(timeout=WAIT_S)
        if self._bad & set(values):
            raise ValueError(f"no answer for {values}")
        return {"y": 2 * inputs["x"], **dict.fromkeys(optional, inputs["x"])}

    def next(self) -> list[int]:
        """Wait for the next run, and return its values."""
        return self.begun.get(timeout=WAIT_S)


class Asked(Future[Any]):
    """The outcome of a request, which leaves when it ends, and is withdrawn if its call is cancelled.

    Attributes:
        job: Its job.
        ends: How often it has ended.
    """

    def __init__(self, executor: Executor, call: Caller | None = None) -> None:
        super().__init__()
        self.ends = 0
        self._executor = executor
        call = call or Caller()
        self.job: Job = executor.admit(call, self.end)
        call.works.append(self)

    def run(self, model: Any, *values: int, reply: Callable[[Answer], Any] = lambda answer: answer) -> Asked:
        inputs = {"x": np.array(values)[:, np.newaxis]}
        self._executor.submit(make_run(self.job, model, Request(inputs, (), reply)))
        return self

    def decode(self, work: Callable[[], object], cost_bytes: int = 0) -> Asked:
        self._executor.submit(Decode(self.job, work, None, cost_bytes))
        return self

    def end(self, outcome: Any) -> None:
        self.ends += 1
        failed = isinstance(outcome, Exception)
        self._executor.leave(self.job, not failed)
        (self.set_exception if failed else self.set_result)(outcome)

    def withdraw(self) -> None:
        self._executor.withdraw(self.job)

    def values(self) -> list[int]:
        """The rows of its answer."""
        rows: list[int] = self.result(WAIT_S).outputs["y"][:, 0].tolist()
        return rows


def begin(executor: Executor, model: Doubling, *values: int) -> list[Asked]:
    """Let a run of 0 begin, and requests of one value each wait."""
    running = Asked(executor).run(model, 0)
    assert model.next() == [0]
    return [running, *(Asked(executor).run(model, value) for value in values)]


def expect_idle(executor: Executor) -> None:
    """Check that every request has left, and that every slot can run."""
    wait_until(lambda: executor.load() == Load(executor.slots, 0, 0, 0))
    model = Doubling()
    asked = [Asked(executor).run(model, value) for value in range(executor.slots)]
    assert sorted(model.next() for _ in asked) == [[value] for value in range(executor.slots)]
    model.open.release(executor.slots)
    for value, one in enumerate(asked):
        assert one.values() == [2 * value]


def test_the_rows_of_a_batch_are_divided_between_its_requests() -> None:
    executor, model = make_executor(), Doubling()
    asked = begin(executor, model)
    asked += [Asked(executor).run(model, *values) for values in ((1, 2), (3,), (4, 5, 6))]
    model.open.release(2)
    assert [one.values() for one in asked] == [[0], [2, 4], [6], [8, 10, 12]]
    assert model.next() == [1, 2, 3, 4, 5, 6]
    waits = [one.result().wait_us for one in asked[1:]]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] > 0
    assert len({one.result().inference_us for one in asked[1:]}) == 1
    expect_idle(executor)


def test_a_request_larger_than_a_batch_of_its_model_runs_in_parts_that_are_counted() -> None:
    counted: list[int] = []
    executor = make_executor(count_run=lambda model, inputs, us: counted.append(inputs))
    model = Doubling(max_batch=2)
    model.open.release(3)
    assert Asked(executor).run(model, 1, 2, 3, 4, 5).values() == [2, 4, 6, 8, 10]
    assert counted == [2, 2, 1]


def test_only_inputs_of_equal_shape_for_equal_outputs_are_of_one_kind() -> None:
    executor = make_executor()
    job = executor.admit(Caller(), print)

    def find_kind(shape: tuple[int, ...], *optional: str) -> object:
        run = make_run(job, Doubling(), Request({"x": np.zeros(shape)}, optional, print))  # type: ignore[arg-type]
        assert run.rows == shape[0]
        return run.kind

    assert find_kind((1, 3)) == find_kind((5, 3))
    assert len({find_kind((1, 3)), find_kind((1, 4)), find_kind((1, 3), "map"), find_kind((1, 3, 1))}) == 4


def test_a_model_learns_whether_a_request_is_alone() -> None:
    executor, model = make_executor(2), Doubling()
    Asked(executor).run(model, 1)
    model.next()
    second = Asked(executor).run(model, 2)
    model.next()
    model.open.release(2)
    second.result(WAIT_S)
    assert model.alone == [True, False]


class TestFailure:
    def test_in_a_batch_fails_only_the_request_that_caused_it(self) -> None:
        counted: list[int] = []
        executor = make_executor(count_run=lambda model, inputs, us: counted.append(inputs))
        model = Doubling(2)
        asked = begin(executor, model, 1, 2, 3)
        model.open.release(5)
        assert [model.next() for _ in range(4)] == [[1, 2, 3], [1], [2], [3]]
        with pytest.raises(ValueError, match=r"no answer for \[2\]"):
            asked.pop(2).result(WAIT_S)
        assert [one.values() for one in asked] == [[0], [2], [6]]
        assert counted == [1, 1, 1]  # failed runs are not counted
        assert model.alone == [True, False, False, False, False]
        expect_idle(executor)

    def test_of_a_batch_does_not_rerun_cancelled_and_expired_requests(self) -> None:
        executor, model, callers = make_executor(), Doubling(1), [Caller(), Caller()]
        asked = begin(executor, model, 1)
        asked += [Asked(executor, call).run(model, value) for value, call in enumerate(callers, 2)]
        model.open.release()
        assert model.next() == [1, 2, 3]
        callers[0].cancel()
        callers[1].remaining_s = 0
        model.open.release(2)
        for one, error in zip(asked[1:], (ValueError, RequestCancelled, DeadlineExpired), strict=True):
            with pytest.raises(error):
                one.result(WAIT_S)
        assert model.next() == [1]
        assert model.begun.empty()
        expect_idle(executor)

    def test_to_make_a_reply_fails_only_its_request(self) -> None:
        executor, model = make_executor(), Doubling()
        asked = begin(executor, model, 1)
        failing = Asked(executor).run(model, 2, reply=lambda answer: 1 // 0)
        asked.append(Asked(executor).run(model, 3))
        model.open.release(2)
        with pytest.raises(ZeroDivisionError):
            failing.result(WAIT_S)
        assert [one.values() for one in asked] == [[0], [2], [6]]
        expect_idle(executor)

    @pytest.mark.parametrize("is_cancelled", [False, True])
    def test_to_deliver_a_reply_is_logged_and_affects_no_other_request(
        self, is_cancelled: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        executor, model, call = make_executor(), Doubling(), Caller()
        begin(executor, model)

        def fail(outcome: Any) -> None:
            executor.leave(job, False)
            raise ValueError("of the transport")

        job = executor.admit(call, fail)
        executor.submit(make_run(job, model, Request({"x": np.zeros((1, 1))}, (), print)))  # type: ignore[arg-type]
        other = Asked(executor).run(model, 3)
        call.is_cancelled = is_cancelled
        model.open.release(2)
        assert other.values() == [6]
        assert [str(record.exc_info and record.exc_info[1]) for record in caplog.records] == ["of the transport"]
        expect_idle(executor)

    @pytest.mark.parametrize("cost_bytes", [0, LARGE_BYTES])
    def test_to_decode_is_logged_and_frees_the_slot_and_the_memory(
        self, cost_bytes: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        executor = make_executor(decode_bytes=MIB * 16)

        def fail() -> None:
            raise ValueError("of the service")

        with caplog.at_level(logging.ERROR):
            asked = [Asked(executor).decode(fail, cost_bytes) for _ in range(3)]
            wait_until(lambda: executor.load().waiting == 0 and len(caplog.records) == 3)
        done = Asked(executor)
        done.decode(lambda: done.end(None), 2**40).result(WAIT_S)  # all of the memory
        for one in asked:
            one.end(None)
        expect_idle(executor)


class TestWithdrawal:
    def test_of_a_request_that_waits_ends_it_at_once(self) -> None:
        executor, model, call = make_executor(), Doubling(), Caller()
        [running] = begin(executor, model)
        waiting = Asked(executor, call).run(model, 1)
        assert not executor.withdraw(running.job)
        call.cancel()
        with pytest.raises(RequestCancelled):
            waiting.result(0)
        assert not executor.withdraw(waiting.job)
        model.open.release()
        assert running.values() == [0]
        assert waiting.ends == running.ends == 1
        assert model.begun.empty()
        expect_idle(executor)

    def test_lets_a_decode_start_that_waited_behind_it(self) -> None:
        executor, go_on, begun = make_executor(2), threading.Event(), threading.Event()
        half = executor.decodes.max_bytes // 2
        asked = [Asked(executor).decode(go_on.wait, half)]
        asked.append(Asked(executor).decode(print, executor.decodes.max_bytes - half + 1))
        asked.append(Asked(executor).decode(begun.set, executor.decodes.max_bytes - half))
        wait_until(lambda: executor.load().waiting == 2)
        asked[1].withdraw()
        assert begun.wait(WAIT_S)
        go_on.set()
        asked[0].end(None)
        asked[2].end(None)
        expect_idle(executor)

    def test_between_two_steps_ends_the_request_at_its_next_step(self) -> None:
        executor, model, call, ended = make_executor(), Doubling(), Caller(), Future[bool]()
        asked = Asked(executor, call)

        def decode() -> None:
            call.cancel()
            try:
                asked.run(model, 1)
            except RequestCancelled as error:
                ended.set_result(asked.ends == 0)
                asked.end(error)

        asked.decode(decode)
        assert ended.result(WAIT_S)
        expect_idle(executor)
        assert model.begun.empty()


class TestThreads:
    def test_that_decode_an_image_run_its_network(self) -> None:
        executor, model, threads = make_executor(), Doubling(), list[str]()
        model.open.release()

        def note(answer: Answer) -> Answer:
            threads.append(threading.current_thread().name)
            return answer

        def decode() -> None:
            threads.append(threading.current_thread().name)
            one.run(model, 1, reply=note)

        one = Asked(executor)
        one.decode(decode)
        assert one.values() == [2]
        assert len(threads) == 2
        assert len(set(threads)) == 1

    def test_take_a_slot_that_another_worker_has_given_back(self) -> None:
        executor, model, stop = make_executor(2), Doubling(max_batch=1), threading.Event()
        shared = executor._scheduler._slots._count = InAll()
        shared.others = 1
        asked = [Asked(executor).run(model, 1) for _ in range(2)]
        model.next()
        assert executor.load()[1:] == (1, 1, 2)
        taking = spawn(executor.take_freed_slots, stop)
        shared.others = 0
        model.next()
        stop.set()
        taking.result(WAIT_S)
        model.open.release(2)
        assert [one.values() for one in asked] == [[2], [2]]

    def test_of_a_transport_run_what_they_submitted(self) -> None:
        executor, model, threads = make_executor(2), Doubling(), dict[str, str]()
        model.open.release()

        def decode(name: str) -> None:
            threads[name] = threading.current_thread().name

        decoding = [Asked(executor), Asked(executor)]
        with executor.receiving():
            decoding[0].decode(lambda: decode("large"), LARGE_BYTES)
            decoding[1].decode(lambda: decode("small"))
            assert executor.load()[1:] == (1, 2, 2)
        assert executor.help()
        assert threads["small"] == threading.current_thread().name
        wait_until(lambda: len(threads) == 2)
        assert threads["large"].startswith("large-")
        assert executor.load().slots_busy == 0
        with executor.receiving():
            asked = Asked(executor).run(model, 1)
        assert executor.help()
        assert asked.done()
        assert not executor.help()
        for one in decoding:
            one.end(None)
        expect_idle(executor)

    def test_of_a_transport_decode_what_waits_and_then_run_one_batch(self) -> None:
        executor, model, threads = make_executor(), Doubling(max_batch=2), list[threading.Thread]()
        model.open.release(2)

        def decode(one: Asked, value: int) -> None:
            threads.append(threading.current_thread())
            assert executor.has_slot()
            one.run(model, value)

        asked = [Asked(executor) for _ in range(3)]
        with executor.receiving():
            assert executor.has_slot()
            for value, one in enumerate(asked):
                one.decode(partial(decode, one, value))
        assert not executor.has_slot()
        assert executor.help()
        assert model.begun.qsize() == 1
        assert model.next() == [0, 1]
        assert threads == [threading.current_thread()] * 2  # the third one waits, because the batch was full
        assert executor.help()
        assert [one.values() for one in asked] == [[0], [2], [4]]
        expect_idle(executor)

    def test_leave_a_large_image_to_others(self) -> None:
        executor, thread = make_executor(), Future[str]()
        asked = Asked(executor)
        with executor.receiving():
            asked.decode(lambda: thread.set_result(threading.current_thread().name), LARGE_BYTES)
        assert not executor.help()
        assert thread.result(WAIT_S).startswith("large-")
        asked.end(None)

    def test_end_when_the_executor_is_closed_and_no_request_waits(self) -> None:
        executor, model = make_executor(2), Doubling()
        assert sorted(thread.name for thread in executor.threads) == ["large-0", "large-1", "slot-0", "slot-1"]
        asked = [*begin(executor, model), *begin(executor, model, 1, 2)]
        executor.close()
        wait_until(lambda: sum(thread.is_alive() for thread in executor.threads) == 2)
        model.open.release(3)
        assert [one.values() for one in asked] == [[0], [0], [2], [4]]
        wait_until(lambda: not any(thread.is_alive() for thread in executor.threads))


@pytest.mark.parametrize("cost_bytes", [0, LARGE_BYTES])
def test_an_ended_request_is_not_referenced(cost_bytes: int) -> None:
    """Without the garbage collector, which runs late: swapped models would accumulate until then."""
    executor, model, call = make_executor(), Doubling(), Caller()
    kept = weakref.ref(model)
    model.open.release()
    asked = Asked(executor, call)
    gc.disable()
    try:
        asked.decode(lambda model=model: asked.run(model, 1), cost_bytes)  # type: ignore[misc]
        del model
        assert asked.values() == [2]
        wait_until(lambda: kept() is None)
    finally:
        gc.enable()


def test_no_request_is_lost_while_many_clients_cancel_at_random() -> None:
    slots, threads, requests = 2, 16, 40
    executor, model = make_executor(slots, Limits(max_batch=5, max_queue=threads - slots)), Doubling()
    model.open.release(threads * requests)
    start = threading.Barrier(threads)

    def client(seed: int) -> tuple[int, int]:
        chance, answered, cancelled = random.Random(seed), 0, 0
        start.wait(WAIT_S)
        for _ in range(requests):
            call, value, timer = Caller(), chance.randrange(256), None
            asked = Asked(executor, call)
            if chance.random() < 0.3:  # at a random moment: while it waits, while it runs, or after it
                timer = threading.Timer(chance.uniform(0, 0.002), call.cancel)
                timer.start()
            try:
                if chance.random() < 0.5:
                    asked.run(model, value)
                else:
                    asked.decode(partial(run_later, asked, value), chance.choice((0, LARGE_BYTES)))
            except RequestCancelled as error:
                asked.end(error)
            try:
                assert asked.values() == [2 * value]
                answered += 1
            except RequestCancelled:
                assert call.is_cancelled
                cancelled += 1
            if timer is not None:
                timer.join()
            assert asked.ends == 1
        return answered, cancelled

    def run_later(asked: Asked, value: int) -> None:
        try:
            asked.run(model, value)
        except RequestCancelled as error:
            asked.end(error)

    counts = [client.result(WAIT_S) for client in [spawn(client, seed) for seed in range(threads)]]
    assert sum(map(sum, counts)) == threads * requests
    assert sum(answered for answered, _ in counts) >= threads * requests * 0.6
    assert max(len(model.next()) for _ in range(model.begun.qsize())) in range(2, 6)
    expect_idle(executor)
    places = [Asked(executor) for _ in range(threads)]
    with pytest.raises(QueueFull):
        executor.admit(Caller(), print)
    for one in places:
        one.end(None)
