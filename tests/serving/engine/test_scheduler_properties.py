"""Properties of the scheduler, whatever requests arrive, in whatever order things happen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from evalmode.errors import DeadlineExpired, QueueFull, RequestCancelled
from serving.engine.decodes import MIB, PACE_BYTES_PER_S, SMALL_BYTES
from serving.engine.job import Decode, Job, Run, Step
from serving.engine.lane import TRY_S, TURN_S, Batch
from serving.engine.scheduler import BATCH_S, Load, Task
from tests.serving.engine.bench import LARGE_MIB, Bench, Client, Network

T = TypeVar("T")

REMAINING_S = (math.inf, -1.0, 0.0005, math.inf, 0.01, math.inf, 0.1, math.inf)
COSTS_MIB = (0, 20, 8, 600, 0, 300, LARGE_MIB, 2 * LARGE_MIB)
ROWS = (1, 1, 2, 1, 6)
SECONDS = (1e-4, TRY_S, 0.006, 0.02, 1.0, 10.0)


def pick(choices: Sequence[T], number: int) -> T:
    return choices[number % len(choices)]


@dataclass(eq=False)
class Known:
    """What is known of a job in flight.

    Attributes:
        job: The job.
        call: Its call.
        model: The model of its request.
        step: The step that waits or runs; None between two steps.
        since: When it was submitted.
        number: The number of steps that were submitted before it.
        runs: Whether it runs.
        aside: Whether it decodes large images, and its network does not run or wait yet.
    """

    job: Job
    call: Client
    model: Network
    step: Any = None  # of type Step
    since: float = 0.0
    number: int = 0
    runs: bool = False
    aside: bool = False


class Play:
    """Requests that arrive, take steps, end, are cancelled and expire.

    The state is kept once more, without queues: a set of jobs, each of which waits, runs or is between two steps. Every
    choice is a number, which counts modulo the number of possibilities.
    """

    def __init__(self, slots: int, max_queue: int, max_batch: int) -> None:
        self.bench = Bench(slots, max_queue, max_batch)
        self.scheduler = self.bench.scheduler
        self.slots, self.places, self.max_batch = slots, slots + max_queue, max_batch
        self.models = [Network(), Network(0.004, max_batch=3), Network(0.009, max_slots=1)]
        self.scheduler.serve(self.models)
        self.known: list[Known] = []
        self.running: list[tuple[Task, list[Known]]] = []
        self.now, self.steps, self.overtaken = 0.0, 0, False

    def arrive(self, first: int, second: int) -> None:
        call = Client(self.now + pick(REMAINING_S, first))
        try:
            job = self.scheduler.admit(call, lambda outcome: None, self.now)
        except QueueFull:
            assert len(self.known) == self.places or self._may_be_late(call)
            return
        assert len(self.known) < self.places
        self.known.append(one := Known(job, call, pick(self.models, first // 8)))
        self._submit(one, second)

    def go_on(self, first: int, second: int) -> None:
        if idle := self._select(waits=False, runs=False):
            if second % 5:
                self._submit(pick(idle, first), second // 5)
            else:
                self._leave(pick(idle, first))

    def finish(self, first: int, second: int) -> None:
        if self.running:
            self._finish(first % len(self.running))

    def withdraw(self, first: int, second: int) -> None:
        if not self.known:
            return
        one = pick(self.known, first)
        one.call.is_cancelled |= second % 2 == 0
        if second % 4 < 3:
            error = self.scheduler.withdraw(one.job)
            assert (error is not None) == (one.step is not None and not one.runs)
            if error is not None:
                assert isinstance(error, RequestCancelled if one.call.is_cancelled else DeadlineExpired)
                self._leave(one)

    def wait(self, first: int, second: int) -> None:
        self.now += pick(SECONDS, first)

    def other_workers(self, first: int, second: int) -> None:
        self.bench.counts["slots_busy"].others = first % (2 * self.slots)
        self.bench.counts["large_slots_busy"].others = second % (2 * self.slots)
        self.bench.counts["slots_awaited"].others = first // 8 % 3
        self.bench.counts["large_slots_awaited"].others = second // 8 % 3

    def start(self, first: int = 0, second: int = 0) -> None:
        """Start what may start, and check each task in the order in which it began."""
        expected, before = self._expect_large(), self.scheduler.load.slots_busy
        started = self.scheduler.start(self.now)
        ended = [(self._find(job), error) for job, error in started.ended]
        large = [task for task in started.tasks if isinstance(task, Decode) and not self._is_small(task)]
        assert [self._find(task.job) for task in large] == expected
        for one, error in ended:
            self._expect_end(one, error)
        for task in started.tasks:
            steps = list(task.runs) if isinstance(task, Batch) else [task]
            jobs = [self._find(step.job) for step in steps]
            for one, step in zip(jobs, steps, strict=True):
                assert one.step is step, "a step runs twice, or was not submitted"
                assert not one.runs
                assert not one.call.is_cancelled
                assert one.call.deadline > self.now
                assert not one.job.withdrawn
            if isinstance(task, Batch):
                self._expect_batch(task, jobs)
            elif task not in large:
                self._expect_first_decode(jobs[0])
            for one in jobs:
                one.runs = True
            self.running.append((task, jobs))
        for one, _ in ended:
            self._leave(one)
        assert self.scheduler.load.slots_busy <= max(before, self._own_slots())
        self._expect_no_more()

    def expect_limits(self) -> None:
        """Check the limits and the counters."""
        busy = [task for task, _ in self.running if isinstance(task, Batch) or self._is_small(task)]
        large = [task for task, _ in self.running if isinstance(task, Decode) and not self._is_small(task)]
        assert len(busy) <= self.slots
        assert len(large) <= self.slots
        assert sum(task.cost_bytes for task in large) <= LARGE_MIB * MIB
        for model in self.models:
            running = sum(isinstance(task, Batch) and task.runs[0].model is model for task in busy)
            assert running <= (model.max_slots or self.slots)
        waiting = self._select(waits=True, runs=False)
        assert self.scheduler.load == Load(self.slots, len(busy), len(waiting), len(self.known))
        assert self.bench.in_flight.mine == len(self.known)
        assert self.bench.counts["slots_busy"].mine == len(busy)
        in_way = sum(not one.aside for one in self.known)
        assert self.scheduler.is_busy() == (in_way >= self.slots or len(self.known) == self.places)

    def end(self) -> None:
        """Let everything end: no job is lost, and every counter returns to 0."""
        for _ in range(3 * len(self.known) + 1):
            self.start()
            for _ in range(len(self.running)):
                self._finish(0)
            for one in self._select(waits=False, runs=False):
                self._leave(one)
            self.now += 0.01
        assert not self.known
        assert self.scheduler.load == Load(self.slots, 0, 0, 0)
        assert self.scheduler._aside == 0
        assert (self.bench.counts["large_slots_busy"].mine, self.bench.decodes._free_bytes) == (0, LARGE_MIB * MIB)
        for lane in map(self.scheduler._find_lane, self.models):
            assert (lane.in_flight, lane.running, lane.rows, len(lane.waiting)) == (0, 0, 0, 0)

    def _submit(self, one: Known, choice: int) -> None:
        step: Step
        if choice % 3 == 0:
            model = one.model if choice & 4 else None
            step = Decode(one.job, lambda: None, model, pick(COSTS_MIB, choice // 8) * MIB)
        else:
            step = Run(one.job, one.model, pick(ROWS, choice // 8), choice // 3 % 5 == 0)
        try:
            self.scheduler.submit(step, self.now)
        except RequestCancelled:
            assert one.job.withdrawn
            assert one.call.is_cancelled
            self._leave(one)
        except DeadlineExpired:
            assert one.job.withdrawn
            assert not one.call.is_cancelled
            self._leave(one)
        except QueueFull:
            assert self._may_be_late(one.call)
            self._leave(one)
        else:
            assert not one.job.withdrawn
            self.steps += 1
            one.step, one.since, one.number = step, self.now, self.steps
            one.aside = isinstance(step, Decode) and (one.aside or not self._is_small(step))

    def _finish(self, index: int) -> None:
        task, jobs = self.running.pop(index)
        self.scheduler.finish(task, self.now)
        for one in jobs:
            one.step, one.runs = None, False
            if isinstance(task, Batch):
                self._leave(one, answered=True)

    def _leave(self, one: Known, answered: bool = False) -> None:
        self.known.remove(one)
        self.scheduler.leave(one.job, answered, self.now)

    def _own_slots(self, name: str = "slots") -> int:
        """The slots that other workers leave to this one: of those that wait for one, each has an equal share."""
        busy, waiting = (self.bench.counts[f"{name}_{what}"].others for what in ("busy", "awaited"))
        return max(1, min(self.slots - busy, math.ceil(self.slots / (1 + waiting))))

    def _select(self, waits: bool, runs: bool) -> list[Known]:
        return [one for one in self.known if (one.step is not None) == waits and one.runs == runs]

    def _find(self, job: Job) -> Known:
        [one] = [one for one in self.known if one.job is job]
        return one

    def _is_small(self, step: Decode) -> bool:
        return step.cost_bytes <= SMALL_BYTES

    def _is_alive(self, one: Known) -> bool:
        """Whether the step of a job can still lead to an answer in time."""
        return not one.call.is_cancelled and one.call.deadline - self.now > self._expect_s(one)

    def _expect_s(self, one: Known) -> float:
        """The time that the step of a job needs, which decides only once it has waited."""
        if isinstance(one.step, Decode):
            return self.scheduler._expect_s(one.step, self.now)
        return one.model.expect_s(one.step.rows) if self.now - one.since >= TRY_S else 0.0

    def _waiting_runs(self, model: Network) -> list[Known]:
        waiting = [one for one in self._select(waits=True, runs=False) if isinstance(one.step, Run)]
        return sorted((one for one in waiting if one.step.model is model), key=lambda one: one.number)

    def _waiting_decodes(self, small: bool) -> list[Known]:
        waiting = [one for one in self._select(waits=True, runs=False) if isinstance(one.step, Decode)]
        return sorted((one for one in waiting if self._is_small(one.step) == small), key=lambda one: one.number)

    def _may_be_late(self, call: Client) -> bool:
        """Whether a request may be refused because its answer would be late: it has a deadline, and must wait."""
        in_way = sum(not one.aside for one in self.known)
        return self.now < call.deadline < math.inf and in_way >= self.slots

    def _expect_large(self) -> list[Known]:
        """The large decodes that begin now."""
        waiting = self._waiting_decodes(small=False)
        waiting.sort(key=lambda one: (one.since + one.step.cost_bytes / PACE_BYTES_PER_S, one.number))
        large = [task for task, _ in self.running if isinstance(task, Decode) and not self._is_small(task)]
        slots = self._own_slots("large_slots") - len(large)
        free = LARGE_MIB * MIB - sum(task.cost_bytes for task in large)
        begun = []
        for one in waiting:
            if slots <= 0 or one.step.cost_bytes > free:
                break
            if self._is_alive(one):
                begun.append(one)
                slots, free = slots - 1, free - one.step.cost_bytes
        return begun

    def _expect_end(self, one: Known, error: Exception) -> None:
        """Check the reason why a job ends: it is cancelled, has expired, or has waited and would be late."""
        assert one.step is not None
        assert not one.runs
        assert isinstance(error, RequestCancelled if one.call.is_cancelled else DeadlineExpired)
        assert not self._is_alive(one)

    def _expect_batch(self, batch: Batch, jobs: list[Known]) -> None:
        """Check what a batch holds: one kind of one model, in order, within its limits and all deadlines."""
        model, rows = jobs[0].model, sum(run.rows for run in batch.runs)
        assert {one.model for one in jobs} == {model}
        assert len({run.kind for run in batch.runs}) == 1
        assert [one.number for one in jobs] == sorted(one.number for one in jobs)
        if len(jobs) > 1:
            assert rows <= min(self.max_batch, model.max_batch)
            assert model.expect_s(rows) <= min(BATCH_S, *(one.call.deadline - self.now for one in jobs))
        waiting = [one for one in self._waiting_runs(model) if not one.call.is_cancelled]
        before = [one for one in waiting if one.number < jobs[0].number]
        assert all(one.call.deadline - self.now <= model.expect_s(one.step.rows) for one in before)
        assert batch.alone == (len(self.known) == 1)
        decodes_wait = any(self._is_alive(one) for one in self._waiting_decodes(small=True))
        assert not (decodes_wait and self.overtaken), "two batches went before a decode"
        self.overtaken = decodes_wait

    def _expect_first_decode(self, one: Known) -> None:
        assert next(each for each in self._waiting_decodes(small=True) if self._is_alive(each)) is one
        self.overtaken = False

    def _expect_no_more(self) -> None:
        """Check that nothing waits for a slot that is free."""
        busy = [task for task, _ in self.running if isinstance(task, Batch) or self._is_small(task)]
        if len(busy) >= self._own_slots():
            return
        assert not self._waiting_decodes(small=True)
        for model in self.models:
            running = sum(isinstance(task, Batch) and task.runs[0].model is model for task in busy)
            assert not self._waiting_runs(model) or running == model.max_slots


EVENTS = (
    [Play.arrive] * 6
    + [Play.go_on] * 2
    + [Play.finish] * 3
    + [Play.withdraw, Play.wait, Play.other_workers]
    + [Play.start] * 3
)
CHOICES = st.integers(0, 999)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    slots=st.integers(1, 3),
    max_queue=st.integers(0, 25),
    max_batch=st.integers(1, 5),
    events=st.lists(st.tuples(st.sampled_from(EVENTS), CHOICES, CHOICES), min_size=30, max_size=150),
)
def test_the_rules_hold_in_any_order_of_events(
    slots: int, max_queue: int, max_batch: int, events: list[tuple[Callable[[Play, int, int], None], int, int]]
) -> None:
    play = Play(slots, max_queue, max_batch)
    for event, first, second in events:
        event(play, first, second)
        play.expect_limits()
    play.end()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows_s=st.lists(st.sampled_from([0.0, 0.001, 0.004, BATCH_S]), min_size=2, max_size=3),
    arrivals=st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=60),
)
def test_models_whose_requests_wait_get_the_same_time(rows_s: list[float], arrivals: list[list[int]]) -> None:
    """From the time when requests of two models begin to wait, the difference is at most a batch of each."""
    bench, models = Bench(max_queue=1000, max_batch=4), [Network(row_s) for row_s in rows_s]
    lanes = [bench.scheduler._find_lane(model) for model in models]
    lead: dict[tuple[int, int], float] = {}  # of the first over the second, while requests of both wait
    running: list[str] = []
    for number, arriving in enumerate(arrivals):
        for index, which in enumerate(arriving):
            if which < len(models):
                bench.run(f"{number}/{index}/{which}", models[which])
        for pair in combinations(range(len(models)), 2):
            if all(lanes[which].waiting for which in pair):
                lead.setdefault(pair, 0.0)
        running = bench.end(running[0]) if running else bench.start()
        if running:
            which = int(running[0][-1])
            taken_s = max(TURN_S, len(running[0].split()) * rows_s[which])
            for pair in lead:
                lead[pair] += taken_s * ((which == pair[0]) - (which == pair[1]))
                assert abs(lead[pair]) <= 2 * BATCH_S + 1e-9
        lead = {pair: value for pair, value in lead.items() if all(lanes[which].waiting for which in pair)}
