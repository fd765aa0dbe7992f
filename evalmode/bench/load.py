"""Ask a server for predictions, in a closed loop or at a constant rate, and note what came of every request."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np

from evalmode.client import CHANNEL
from evalmode.wire import classifier_pb2 as wire

PREDICT = "/evalmode.v1.Classifier/Predict"
OK, WRONG = "OK", "WRONG"
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, eq=False)
class Measured:
    """What came of a load.

    Attributes:
        seconds: how long it lasted.
        outcomes: how many requests ended with each status; ``WRONG`` is an answer with another best label than the
            first one had.
        latencies_ms: of the answers, float64 (N,); at a constant rate from the moment when the request was due.
        client_cpu_s: processor time that this process spent.
    """

    seconds: float
    outcomes: dict[str, int]
    latencies_ms: np.ndarray[Any, np.dtype[np.float64]]
    client_cpu_s: float

    @property
    def requests(self) -> int:
        """How many there were."""
        return sum(self.outcomes.values())

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.outcomes.get(OK, 0) / self.seconds

    def percentile(self, share: int) -> float | None:
        """Milliseconds within which this share of the answers came; None without any."""
        return round(float(np.percentile(self.latencies_ms, share)), 3) if len(self.latencies_ms) else None


def in_flight(address: str, request: bytes, count: int, seconds: float, timeout_s: float) -> Measured:
    """Closed loop: ``count`` callers, each of which asks again when it has its answer."""

    async def load(asking: _Asking) -> None:
        until = time.perf_counter() + seconds

        async def caller() -> None:
            while (started := time.perf_counter()) < until:
                await asking.ask(started)

        await asyncio.gather(*(caller() for _ in range(count)))

    return asyncio.run(_measure(address, request, timeout_s, load))


def at_rate(address: str, request: bytes, rate: float, seconds: float, timeout_s: float) -> Measured:
    """Open loop: ``rate`` requests a second, whatever comes back; a late start counts as latency."""

    async def load(asking: _Asking) -> None:
        started, asked = time.perf_counter(), []
        for number in range(round(rate * seconds)):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(asking.ask(due)))
        await asyncio.gather(*asked)

    return asyncio.run(_measure(address, request, timeout_s, load))


class _Asking:
    """One prepared request, sent again and again on a channel."""

    def __init__(self, channel: grpc.aio.Channel, request: bytes, timeout_s: float) -> None:
        self._predict = channel.unary_unary(PREDICT)  # bytes as they are: nothing is serialised
        self._request = request
        self._timeout_s = timeout_s
        self._expected: int | None = None
        self.outcomes: dict[str, int] = {}
        self.latencies: list[float] = []

    async def ask(self, due: float) -> None:
        try:
            reply = await self._predict(self._request, timeout=self._timeout_s)
            taken = time.perf_counter() - due
            outcome = self._judge(reply)
            self.latencies.append(taken * 1e3)
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _judge(self, reply: bytes) -> str:
        best = wire.PredictResponse.FromString(reply).scores[0].index
        if self._expected is None:
            self._expected = best
        return OK if best == self._expected else WRONG


async def _measure(address: str, request: bytes, timeout_s: float, load: Any) -> Measured:
    async with grpc.aio.insecure_channel(address, options=CHANNEL) as channel:
        asking = _Asking(channel, request, timeout_s)
        await asking.ask(time.perf_counter())  # connects
        asking.outcomes, asking.latencies = {}, []
        cpu, started = time.process_time(), time.perf_counter()
        await load(asking)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Measured(seconds, asking.outcomes, np.array(asking.latencies), cpu)


def describe(measured: Measured) -> dict[str, Any]:
    """The figures as JSON values."""
    return {
        "rate": round(measured.rate, 1),
        **{f"p{share}_ms": measured.percentile(share) for share in PERCENTILES},
        "client_cpu_us": round(measured.client_cpu_s / max(1, measured.requests) * 1e6),
        "outcomes": measured.outcomes,
    }
