"""A load generator in a process of its own that can send several times the load that a server can handle.

    python -m benchmarks.generator ADDRESS REQUEST (--callers N | --rate R) [--seconds 10] [--deadline 1]

REQUEST is a file with a PredictRequest. Its frames are built once; a call takes this process about 30 us. With --rate
the loop is open: calls begin when they are due, regardless of the replies. Calls are cancelled at their deadline, and
later answers do not count. Prints figures as JSON, including the lateness of the generator itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import select
import subprocess
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http2 import (
    CLOSED,
    EXPIRED,
    PREDICT,
    RESET,
    UNREADABLE,
    Connection,
    encode_call,
    message,
)
from benchmarks.processes import list_command, make_environment

CONNECTIONS = 8
IDLE_S = 0.0005
LATE = "DEADLINE_EXCEEDED (by the client)"
NAMES = {0: "OK", 1: "CANCELLED", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 8: "RESOURCE_EXHAUSTED"}
NAMES |= {13: "INTERNAL", 14: "UNAVAILABLE", RESET: "RESET", CLOSED: "CLOSED", UNREADABLE: "UNREADABLE"}
NAMES |= {EXPIRED: LATE}
PERCENTILES = (50, 99)


@dataclass(eq=False)
class Lane:
    """A connection, and the due times of its open calls."""

    connection: Connection
    begun: dict[int, float] = field(default_factory=dict)


class Generator:
    """Open calls, and the results of finished ones.

    Args:
        address: HOST:PORT.
        request: A serialized PredictRequest.
        deadline_s: Deadline of each call.
    """

    def __init__(self, address: str, request: bytes, deadline_s: float) -> None:
        self._block = encode_call(PREDICT)
        self._data = message(request)
        self._deadline_s = deadline_s
        self._address = address
        self._lanes = [Lane(Connection(address)) for _ in range(CONNECTIONS)]
        self._leaving: list[Lane] = []  # the server accepts no more calls on them
        self._due: deque[tuple[float, Lane, int]] = deque()
        self._turn = 0
        self.outcomes: Counter[str] = Counter()
        self.answers_ms: list[float] = []
        self.refusals_ms: list[float] = []
        self.refusals_with_details = 0
        self.last_answer = 0.0
        self.reconnects = 0
        self.most_waiting = 0

    @property
    def under_way(self) -> int:
        """Number of open calls."""
        return sum(len(lane.begun) for lane in (*self._lanes, *self._leaving))

    def call(self, now: float) -> None:
        """Begin a call.

        Args:
            now: Due time, by ``time.perf_counter``.
        """
        self._turn = (self._turn + 1) % CONNECTIONS
        lane = self._lanes[self._turn]
        if lane.connection.going or not lane.connection.alive:
            self.reconnects += 1
            self._leaving.append(lane)
            lane = self._lanes[self._turn] = Lane(Connection(self._address))
        stream = lane.connection.call(self._block, self._data, until=now + self._deadline_s)
        lane.begun[stream] = now
        self._due.append((now + self._deadline_s, lane, stream))

    def exchange(self) -> None:
        """Send pending data, record finished calls, cancel late ones; wait briefly if there is nothing to do."""
        self._leaving = [lane for lane in self._leaving if lane.begun]
        lanes = [*self._lanes, *self._leaving]
        select.select([lane.connection.socket for lane in lanes if lane.connection.alive], [], [], IDLE_S)
        for lane in lanes:
            lane.connection.flush()
            self.most_waiting = max(self.most_waiting, lane.connection.waiting)
            for stream, status, details in lane.connection.receive():
                self._end(lane.begun.pop(stream), status, details)
            lane.connection.flush()
        now = time.perf_counter()
        while self._due and self._due[0][0] < now:
            _, lane, stream = self._due.popleft()
            if stream in lane.begun:
                del lane.begun[stream]
                lane.connection.reset(stream)
                self.outcomes[LATE] += 1

    def _end(self, began: float, status: int, details: bool) -> None:
        now = time.perf_counter()
        taken = now - began
        name = NAMES.get(status, f"status {status}")
        if status == 0 and taken > self._deadline_s:
            name = "OK (late)"
        elif status == 0:
            self.answers_ms.append(taken * 1e3)
            self.last_answer = now
        elif status == 8:
            self.refusals_ms.append(taken * 1e3)
            self.refusals_with_details += details
        self.outcomes[name] += 1


def generate(
    address: str, request: bytes, deadline_s: float, seconds: float, callers: int = 0, rate: float = 0.0
) -> dict[str, Any]:
    """Load a server.

    Args:
        address: HOST:PORT.
        request: A serialized PredictRequest.
        deadline_s: Deadline of each call.
        seconds: Time during which calls are begun.
        callers: Number of callers of a closed loop; 0 for an open loop.
        rate: Calls per second of the open loop.

    Returns:
        The figures that the module prints.
    """
    load = Generator(address, request, deadline_s)
    late_ms: list[float] = []
    spent, started, begun = time.process_time(), time.perf_counter(), 0
    while (now := time.perf_counter()) < started + seconds:
        if callers:
            for _ in range(callers - load.under_way):
                load.call(now)
                begun += 1
        else:
            while begun < (now - started) * rate:
                due = started + begun / rate
                late_ms.append((now - due) * 1e3)
                load.call(due)
                begun += 1
        load.exchange()
    begun_s = time.perf_counter() - started
    while load.under_way and time.perf_counter() < started + seconds + deadline_s + 1:
        load.exchange()
    return {
        "begun": begun,
        "begun_per_s": round(begun / begun_s, 1),
        "answers_per_s": round(len(load.answers_ms) / max(begun_s, load.last_answer - started), 1),
        "outcomes": dict(load.outcomes),
        "reconnects": load.reconnects,
        "without_end": load.under_way,
        **{f"answer_ms_p{share}": percentile(load.answers_ms, share) for share in PERCENTILES},
        **{f"refusal_ms_p{share}": percentile(load.refusals_ms, share) for share in PERCENTILES},
        "refusals_with_details": load.refusals_with_details,
        "late_ms_p99": percentile(late_ms, 99),
        "most_bytes_waiting": load.most_waiting,
        "processor_share": round((time.process_time() - spent) / (time.perf_counter() - started), 3),
    }


def percentile(values: list[float], share: int) -> float | None:
    """Compute a percentile, rounded; None without values."""
    return round(float(np.percentile(values, share)), 2) if values else None


class Generating:
    """A process that generates load.

    Args:
        address: HOST:PORT.
        request: A file with a PredictRequest.
        options: Further command-line options.
    """

    def __init__(self, address: str, request: Path, *options: object) -> None:
        command = list_command("benchmarks.generator", address, request, *options)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=make_environment())

    def figures(self) -> dict[str, Any]:
        """Wait until the process has finished and return its figures."""
        output, _ = self._process.communicate()
        return dict(json.loads(output))


def main() -> None:
    """Generate load and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("request", type=Path)
    parser.add_argument("--callers", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--deadline", type=float, default=1)
    arguments = parser.parse_args()
    gc.disable()  # otherwise the generator measures its own pauses
    load = (arguments.deadline, arguments.seconds, arguments.callers, arguments.rate)
    print(json.dumps(generate(arguments.address, arguments.request.read_bytes(), *load)))


if __name__ == "__main__":
    main()
