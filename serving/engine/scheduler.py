"""Decides which requests are admitted, and what runs when, in which slot and together with what.

The scheduler has no threads, no lock and no clock: the time is an argument, and an ``Executor`` runs what it starts.

A request is a ``Job`` from its admission to its answer. It takes steps, one at a time: it parses a large message or
decodes images (``Decode``), and it runs a network (``Run``). The rules:

- At most ``in_flight.limit`` jobs are admitted in all workers, and none that would be answered after its deadline.
- A step starts at once if a slot is free: nothing is delayed in the hope of a larger batch.
- Workers share the slots, so that their threads do not compete: see ``SharedSlots``.
- Runs of one model that wait run as one batch if their shapes are equal and all will meet their deadlines.
- Decodes go before a small batch, because their images may join it. A batch waits for them at most ``SHARE_S``. After
  a batch that went before decodes, a decode goes next: they also progress while batches always wait.
- Large decodes have slots of their own, so that small images do not wait for them, and a limit on memory.
- Models take turns, by the time that their networks take. A model may be limited to fewer slots than there are.
- A job whose call was cancelled, or whose answer would be late, takes no further step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from evalmode.errors import QueueFull
from serving.engine.call import Call, find_reason_to_end
from serving.engine.decodes import MIB, Decodes
from serving.engine.job import Decode, Job, Network, Run, Step, explain_withdrawal
from serving.engine.lane import TRY_S, Batch, Ended, Lane
from serving.engine.pace import Pace
from serving.engine.shared_limits import SharedLimit, SharedSlots

BATCH_S = 0.02  # target duration of a batch: every request in it waits until the batch ends
SHARE_S = 0.006  # the same if another slot is free: a larger batch gains nothing, and the other slot would stay idle

Task = Decode | Batch


class Start(NamedTuple):
    """What begins now.

    Attributes:
        tasks: What has been given a slot. Each ends with ``Scheduler.finish``.
        ended: Jobs that end without another step, each with the error.
    """

    tasks: list[Task]
    ended: Ended


class Load(NamedTuple):
    """The load of a server.

    Attributes:
        slots: The number of slots.
        slots_busy: The slots in use.
        waiting: The requests that wait for a slot, or for memory to decode in.
        in_flight: All requests that are admitted and not answered yet.
    """

    slots: int
    slots_busy: int
    waiting: int
    in_flight: int


class Scheduler:
    """See the module. Times are in seconds, of any clock that does not go back.

    Args:
        slots: The batches and small decodes that may run at the same time.
        max_batch: The largest number of inputs in a batch.
        decodes: The decodes that wait.
        in_flight: The limit on requests in flight, in all workers.

    Attributes:
        slots: The number of slots.
        decodes: See above.
    """

    def __init__(self, slots: SharedSlots, max_batch: int, decodes: Decodes, in_flight: SharedLimit) -> None:
        self.slots = slots.limit
        self.decodes = decodes
        self._max_batch = max_batch
        self._places, self._in_flight = in_flight.limit, in_flight.count
        self._slots = slots
        self._lanes: WeakKeyDictionary[Network, Lane] = WeakKeyDictionary()
        self._served: dict[Network, Lane] = {}
        self._queued: dict[Lane, None] = {}  # the lanes with runs that wait
        self._waiting = self._admitted = 0
        self._aside = 0  # admitted jobs that delay no other one
        self._unknown = 0  # the others of unknown models
        self._turn_s = 0.0  # the ``turn_s`` of the lane whose turn it was last, before its batch
        self._overtook = False  # whether the last batch went before decodes that wait

    @property
    def load(self) -> Load:
        """The current load."""
        return Load(self.slots, self._slots.busy, self._waiting, self._admitted)

    def serve(self, models: Iterable[Network]) -> None:
        """Note for which models requests may arrive.

        Args:
            models: All of them.
        """
        self._served = {model: self._find_lane(model) for model in models}

    def is_busy(self) -> bool:
        """Return whether a new request might have to wait."""
        return self._in_the_way >= self.slots or self._is_full()

    def has_free_slot(self) -> bool:
        """Return whether one more task may run."""
        return self._slots.is_free()

    def check(self, deadline: float, now: float) -> None:
        """Check whether a new request would be admitted, before its model is known.

        Args:
            deadline: The time of its deadline.
            now: The current time.

        Raises:
            QueueFull: The limit on requests in flight is reached, or whatever its model is, the requests in flight
                will take longer than until its deadline.
        """
        if self._is_full():
            raise QueueFull(
                f"{self._places} requests are in flight, the limit: retry later or add a replica",
                limit_requests=self._places,
            )
        if self._served and self._in_the_way >= self.slots:
            shortest_s = min([lane.pace.expect_s(lane.in_flight + self._unknown) for lane in self._served.values()])
            _check_in_time(shortest_s, deadline - now)

    def admit(self, call: Call, done: Callable[[Any], object], now: float) -> Job:
        """Admit a request, so that an excess request is refused before its image is decoded.

        Args:
            call: Its call.
            done: Called once with the reply or the exception.
            now: The current time.

        Raises:
            QueueFull: See ``check``.
        """
        self.check(call.deadline, now)
        job = Job(call, done, now, ahead=self._in_the_way)
        self._admitted += 1
        self._unknown += 1
        self._in_flight.put(self._admitted)
        return job

    def submit(self, step: Step, now: float) -> None:
        """Queue the next step of a job.

        Args:
            step: The step.
            now: The current time.

        Raises:
            QueueFull: The requests for its model that are in flight will take longer than until its deadline.
            RequestCancelled: The job was withdrawn, because its call was cancelled.
            DeadlineExpired: The job was withdrawn, because its deadline has passed.
        """
        job = step.job
        if job.withdrawn:
            raise explain_withdrawal(step)
        step.since = now
        if job.lane is None and step.model is not None:
            self._enter(job, step.model, now)
        if isinstance(step, Run):
            if job.aside:
                self._end_aside(job, now)
            self._queue(step)
        else:
            if not job.aside and not self.decodes.is_small(step.cost_bytes):
                self._set_aside(job)
            self.decodes.add(step, now)
        job.step = step
        job.waited = True
        self._waiting += 1

    def start(self, now: float) -> Start:
        """Start everything that may start now.

        Args:
            now: The current time.
        """
        tasks: list[Task] = []
        ended: Ended = []
        while (step := self.decodes.take_large()) is not None:
            if self._begin(step, now, ended):
                tasks.append(step)
            else:
                self.decodes.release_large(step)
        while self._slots.is_free() and (task := self._take(now, ended)) is not None:
            self._slots.take()
            tasks.append(task)
        self._slots.note_waiting(self._waits_for_slot())
        return Start(tasks, ended)

    def occupy(self) -> bool:
        """Take a slot for a thread that receives requests, if one is free.

        Returns:
            Whether it has a slot, which ``vacate`` frees.
        """
        if not self._slots.is_free():
            return False
        self._slots.take()
        return True

    def vacate(self) -> None:
        """Free a slot that ``occupy`` has taken."""
        self._slots.give_back()

    def finish(self, task: Task, now: float) -> None:
        """Free the slot of a task that has ended.

        Args:
            task: What ``start`` returned.
            now: The current time.
        """
        if isinstance(task, Batch):
            self._slots.give_back()
            _lane_of(task.runs[0]).running -= 1
            return
        if self.decodes.is_small(task.cost_bytes):
            self._slots.give_back()
        else:
            self.decodes.release_large(task)
        if task.model is not None:
            self._pace_of(task, task.model).note(now - task.began, task.cost_bytes // MIB)

    def withdraw(self, job: Job) -> Exception | None:
        """Withdraw a job whose call was cancelled or whose deadline has passed.

        Args:
            job: The job.

        Returns:
            The error to end it with if it was waiting. Otherwise None: it ends before its next step.
        """
        job.withdrawn = True
        if (step := job.step) is None:
            return None
        job.step = None
        self._waiting -= 1
        if isinstance(step, Run):
            lane = _lane_of(step)
            lane.remove(step)
            if not lane.waiting:
                del self._queued[lane]
        else:
            self.decodes.remove(step)
        return explain_withdrawal(step)

    def leave(self, job: Job, answered: bool, now: float) -> None:
        """Give back the place of a job that has ended.

        Args:
            job: The job.
            answered: Whether it has a reply. The time that it took then counts for its model's pace.
            now: The current time.
        """
        self._admitted -= 1
        self._in_flight.put(self._admitted)
        self._aside -= job.aside
        if job.lane is None:
            self._unknown -= not job.aside
        elif not job.aside:
            job.lane.in_flight -= 1
            note = job.lane.pace.note if answered else job.lane.pace.note_unanswered
            note(now - job.delays_since, job.ahead)

    def _waits_for_slot(self) -> bool:
        if self._slots.is_free():
            return False
        return bool(self.decodes.small) or any(lane.has_free_slot(self.slots) for lane in self._queued)

    @property
    def _in_the_way(self) -> int:
        """The number of admitted jobs that delay others."""
        return self._admitted - self._aside

    def _is_full(self) -> bool:
        return self._admitted + self._in_flight.elsewhere() >= self._places

    def _find_lane(self, model: Network) -> Lane:
        if (lane := self._served.get(model) or self._lanes.get(model)) is None:
            lane = self._lanes[model] = Lane()
        return lane

    def _enter(self, job: Job, model: Network, now: float) -> None:
        """Note the model of a job."""
        lane = self._find_lane(model)
        if not job.waited:
            job.ahead = lane.in_flight + self._unknown - 1  # without itself
            if self._in_the_way > self.slots:
                _check_in_time(lane.pace.expect_s(job.ahead), job.call.deadline - now)
        if not job.aside:
            self._unknown -= 1
            lane.in_flight += 1
        job.lane = lane

    def _set_aside(self, job: Job) -> None:
        """Note that a job delays no other one."""
        job.aside = True
        self._aside += 1
        if job.lane is not None:
            job.lane.in_flight -= 1
        else:
            self._unknown -= 1

    def _end_aside(self, job: Job, now: float) -> None:
        """Count a job again: its network runs in a slot like any other. Others do not take as long as its decode."""
        assert job.lane is not None
        job.aside, job.delays_since = False, now
        self._aside -= 1
        job.ahead = job.lane.in_flight
        job.lane.in_flight += 1

    def _queue(self, run: Run) -> None:
        lane = _lane_of(run)
        if not lane.waiting:
            lane.turn_s = max(lane.turn_s, self._turn_s)  # a model that was idle has not saved up turns
            self._queued[lane] = None
        lane.add(run)

    def _take(self, now: float, ended: Ended) -> Task | None:
        """Take the batch or the small decode that is next."""
        while True:
            small = self.decodes.small
            lanes = [lane for lane in self._queued if lane.has_free_slot(self.slots)]
            lane = min(lanes, key=lambda lane: lane.turn_s, default=None)
            due = lane is not None and not self._overtook and lane.is_due(self._max_batch, SHARE_S, now)
            if lane is not None and (due or not small):
                if runs := self._take_batch(lane, now, ended):
                    self._overtook = bool(small)
                    return Batch(runs, self._admitted == 1 and not self._in_flight.elsewhere())
            elif not small:
                return None
            elif self._begin(step := small.popleft(), now, ended):
                self._overtook = False
                return step

    def _take_batch(self, lane: Lane, now: float, ended: Ended) -> list[Run]:
        self._turn_s = max(self._turn_s, lane.turn_s)
        lane.running += 1
        shared = self._slots.is_free(beside=1) and lane.has_free_slot(self.slots)
        waiting = len(lane.waiting)
        runs = lane.take(self._max_batch, SHARE_S if shared else BATCH_S, now, ended)
        self._waiting -= waiting - len(lane.waiting)
        if not lane.waiting:
            del self._queued[lane]
        if not runs:
            lane.running -= 1
        return runs

    def _begin(self, step: Decode, now: float, ended: Ended) -> bool:
        """Note that a decode no longer waits; end its job if its answer cannot be used any more."""
        step.job.step = None
        step.began = now
        self._waiting -= 1
        if (error := find_reason_to_end(step.job.call, now, self._expect_s(step, now))) is not None:
            ended.append((step.job, error))
        return error is None

    def _expect_s(self, step: Decode, now: float) -> float:
        """Return the time that a decode and the network after it need; 0.0 if it is unknown."""
        if step.model is None or now - step.since < TRY_S:
            return 0.0
        pace = self._pace_of(step, step.model)
        return pace.expect_s(step.cost_bytes // MIB) + step.model.expect_s(1)

    def _pace_of(self, step: Decode, model: Network) -> Pace:
        """Return the pace of decodes like this one, per MiB."""
        lane = self._find_lane(model)
        return lane.decode_pace if self.decodes.is_small(step.cost_bytes) else lane.large_pace


def _lane_of(run: Run) -> Lane:
    assert run.job.lane is not None
    return run.job.lane


def _check_in_time(expected_s: float, remaining_s: float) -> None:
    if 0 < remaining_s < expected_s:  # one that has expired is detected later
        raise QueueFull(
            "the requests in flight take longer than the deadline of this request: retry later, or set a longer "
            "deadline"
        )
