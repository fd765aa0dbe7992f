"""A scheduler with a clock that a test sets, networks and calls."""

from __future__ import annotations

import math
from collections import defaultdict

from serving.engine.decodes import MIB, SMALL_BYTES, Decodes
from serving.engine.job import Decode, Job, Run, Step
from serving.engine.lane import Batch
from serving.engine.scheduler import Scheduler, Task
from serving.engine.shared_limits import SharedLimit, SharedSlots

LARGE_MIB = 1000  # the memory for large decodes


class Network:
    """A network of known duration."""

    def __init__(self, row_s: float = 0.0, max_batch: int = 64, max_slots: int = 0) -> None:
        self.row_s, self.max_batch, self.max_slots = row_s, max_batch, max_slots

    def expect_s(self, rows: int) -> float:
        return rows * self.row_s


class Client:
    """The call of a request."""

    arrived = 0.0

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self.is_cancelled = False

    def cancelled(self) -> bool:
        return self.is_cancelled


class InAll:
    """Counts something in all workers.

    Attributes:
        mine: The number of the scheduler.
        others: That of other workers.
    """

    def __init__(self) -> None:
        self.mine = self.others = 0

    def put(self, mine: int) -> None:
        self.mine = mine

    def elsewhere(self) -> int:
        return self.others


class Bench:
    """A scheduler, whose jobs have names; a batch is written as the names of its jobs: ``"a b c"``.

    Attributes:
        now: The time.
        in_flight: The requests in flight in all workers.
        counts: What else is counted in all workers, by name: ``slots_busy``, ``slots_awaited``, and the same for
            ``large_slots``.
        jobs: The jobs that are in flight.
        calls: The call of each job.
        errors: The errors of the jobs that ended without an answer.
        alone: For each batch, whether no other request was in flight when it began.
    """

    def __init__(self, slots: int = 1, max_queue: int = 100, max_batch: int = 32) -> None:
        self.now, self.in_flight = 0.0, InAll()
        self.counts: dict[str, InAll] = defaultdict(InAll)
        self.decodes = Decodes(
            SharedSlots(slots, "large_slots", self.counts.__getitem__), LARGE_MIB * MIB + slots * SMALL_BYTES
        )
        places = SharedLimit(slots + max_queue, self.in_flight)
        self.scheduler = Scheduler(
            SharedSlots(slots, "slots", self.counts.__getitem__), max_batch, self.decodes, places
        )
        self.jobs: dict[str, Job] = {}
        self.calls: dict[str, Client] = {}
        self.errors: dict[str, Exception] = {}
        self.alone: list[bool] = []
        self._tasks: dict[str, Task] = {}

    def admit(self, name: str, remaining_s: float = math.inf) -> Job:
        call = Client(self.now + remaining_s)
        self.jobs[name] = self.scheduler.admit(call, lambda outcome: None, self.now)
        self.calls[name] = call
        return self.jobs[name]

    def run(
        self, names: str, model: Network, rows: int = 1, remaining_s: float = math.inf, kind: object = None
    ) -> None:
        """Submit a run of each job; a job that is unknown is admitted."""
        for name in names.split():
            self._submit(Run(self._find(name, remaining_s), model, rows, kind))

    def decode(self, names: str, mib: float = 0, model: Network | None = None, remaining_s: float = math.inf) -> None:
        """Submit a decode of each job; a job that is unknown is admitted."""
        for name in names.split():
            self._submit(Decode(self._find(name, remaining_s), lambda: None, model, round(mib * MIB)))

    def start(self) -> list[str]:
        """Start what may start. Jobs that end are left."""
        started = self.scheduler.start(self.now)
        begun = []
        for task in started.tasks:
            jobs = [run.job for run in task.runs] if isinstance(task, Batch) else [task.job]
            if isinstance(task, Batch):
                self.alone.append(task.alone)
            begun.append(" ".join(map(self._name, jobs)))
            self._tasks[begun[-1]] = task
        for job, error in started.ended:
            self._leave(self._name(job), error)
        return begun

    def end(self, task: str, keep: bool = False) -> list[str]:
        """End a task; answer its jobs, or ``keep`` them in flight. Start what may start then."""
        self.scheduler.finish(self._tasks.pop(task), self.now)
        if not keep:
            for name in task.split():
                self._leave(name)
        return self.start()

    def withdraw(self, name: str) -> Exception | None:
        """Withdraw a job. If it waited, it is left."""
        if (error := self.scheduler.withdraw(self.jobs[name])) is not None:
            self._leave(name, error)
        return error

    def leave(self, name: str) -> None:
        """End a job without an answer."""
        self.scheduler.leave(self.jobs.pop(name), False, self.now)

    def _find(self, name: str, remaining_s: float) -> Job:
        return self.jobs[name] if name in self.jobs else self.admit(name, remaining_s)

    def _submit(self, step: Step) -> None:
        self.scheduler.submit(step, self.now)

    def _name(self, job: Job) -> str:
        return next(name for name, one in self.jobs.items() if one is job)

    def _leave(self, name: str, error: Exception | None = None) -> None:
        if error is not None:
            self.errors[name] = error
        self.scheduler.leave(self.jobs.pop(name), error is None, self.now)
