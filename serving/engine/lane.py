"""The requests for one model: those that wait, and how long they take."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from serving.engine.call import find_reason_to_end
from serving.engine.job import Job, Run
from serving.engine.pace import Pace

TURN_S = 1e-4  # what a batch of unknown duration counts as when models take turns
TRY_S = 1e-3  # a run that has waited for less begins even if it is expected to be late, which may be wrong

Ended = list[tuple[Job, Exception]]  # jobs that end without another step, each with the error


class Batch(NamedTuple):
    """Runs that are executed together.

    Attributes:
        runs: The runs, at least one.
        alone: Whether no other request is in flight.
    """

    runs: list[Run]
    alone: bool


@dataclass(eq=False)
class Lane:
    """The requests for one model.

    Attributes:
        pace: Estimates how long they take.
        decode_pace: Estimates how long small decodes take, per MiB.
        large_pace: Estimates how long large decodes take, per MiB.
        in_flight: The number of them, without those that delay no other request.
        running: The number of batches that run.
        waiting: The runs that wait.
        rows: The inputs of these.
        turn_s: The time that the batches of the model took, compared with those of other models.
    """

    pace: Pace = field(default_factory=Pace)
    decode_pace: Pace = field(default_factory=Pace)
    large_pace: Pace = field(default_factory=Pace)
    in_flight: int = 0
    running: int = 0
    waiting: deque[Run] = field(default_factory=deque)
    rows: int = 0
    turn_s: float = 0.0

    def add(self, run: Run) -> None:
        """Let a run wait."""
        self.waiting.append(run)
        self.rows += run.rows

    def remove(self, run: Run) -> None:
        """Remove a run that waits."""
        self.waiting.remove(run)
        self.rows -= run.rows

    def has_free_slot(self, slots: int) -> bool:
        """Return whether one more batch may run. Some run must wait.

        Args:
            slots: The number of slots of the server.
        """
        return self.running < (self.waiting[0].model.max_slots or slots)

    def is_due(self, max_batch: int, wait_s: float, now: float) -> bool:
        """Return whether the next batch should not wait for more runs. Some run must wait.

        Args:
            max_batch: The largest number of inputs in a batch.
            wait_s: The longest wait, and the duration of a batch that is large enough, in seconds.
            now: The current time.
        """
        first = self.waiting[0]
        full = self.rows >= min(max_batch, first.model.max_batch)
        return full or self.rows * first.model.expect_s(1) >= wait_s or now - first.since >= wait_s

    def take(self, max_batch: int, within_s: float, now: float, ended: Ended) -> list[Run]:
        """Take the first run that can still be answered in time, and all that fit into its batch.

        Args:
            max_batch: The largest number of inputs in a batch.
            within_s: The longest duration of a batch, in seconds.
            now: The current time.
            ended: Receives the jobs that cannot be answered in time.

        Returns:
            The runs; none if no job can be answered in time.
        """
        model = self.waiting[0].model
        max_rows, row_s = min(max_batch, model.max_batch), model.expect_s(1)
        runs: list[Run] = []
        left: deque[Run] = deque()
        rows = 0
        while self.waiting and not (runs and (rows >= max_rows or (rows + 1) * row_s > within_s)):
            run = self.waiting.popleft()
            more, remaining_s = rows + run.rows, run.job.call.deadline - now
            needed_s = 0.0 if runs or now - run.since < TRY_S else model.expect_s(run.rows)
            if (error := find_reason_to_end(run.job.call, now, needed_s)) is not None:
                ended.append((run.job, error))
            elif runs and (run.kind != runs[0].kind or more > max_rows or more * row_s > min(within_s, remaining_s)):
                left.append(run)
                continue
            else:
                runs.append(run)
                rows, within_s = more, min(within_s, remaining_s)
            run.job.step = None
            self.rows -= run.rows
        self.waiting.extendleft(reversed(left))
        if runs:
            self.turn_s += max(TURN_S, rows * row_s)
        return runs
