"""Send requests to a server, in a closed loop or at a constant rate, and record the outcome of each."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np

from evalmode.client.channel import OPTIONS
from evalmode.wire import classifier_pb2 as wire

PREDICT = "/evalmode.v1.Classifier/Predict"
OK, WRONG = "OK", "WRONG"
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, eq=False)
class Measured:
    """The outcome of a load.

    Attributes:
        seconds: The duration of the load.
        outcomes: The number of requests by status; ``WRONG`` is an answer whose best label is not that of the first
            answer.
        latencies_ms: Milliseconds to each answer, float64 (N,); at a constant rate from the time at which the request
            was due.
        client_cpu_s: Processor time of this process, in seconds.
    """

    seconds: float
    outcomes: dict[str, int]
    latencies_ms: np.ndarray[Any, np.dtype[np.float64]]
    client_cpu_s: float

    @property
    def requests(self) -> int:
        """The number of requests."""
        return sum(self.outcomes.values())

    @property
    def rate(self) -> float:
        """Correct answers per second."""
        return self.outcomes.get(OK, 0) / self.seconds

    def percentile(self, share: int) -> float | None:
        """The latency that a share of the answers does not exceed.

        Args:
            share: In percent, 0 to 100.

        Returns:
            Milliseconds; None without an answer.
        """
        return round(float(np.percentile(self.latencies_ms, share)), 3) if len(self.latencies_ms) else None


def in_flight(address: str, request: bytes, count: int, seconds: float, timeout_s: float) -> Measured:
    """Closed loop: each caller sends its next request when it has the answer to the last.

    Args:
        address: HOST:PORT.
        request: A serialised ``PredictRequest``.
        count: The number of callers.
        seconds: The duration.
        timeout_s: The deadline of a request.

    Returns:
        The outcome.
    """

    async def load(sender: Sender) -> None:
        until = time.perf_counter() + seconds

        async def caller() -> None:
            while (started := time.perf_counter()) < until:
                await sender.send(started)

        await asyncio.gather(*(caller() for _ in range(count)))

    return asyncio.run(_measure(address, request, timeout_s, load))


def at_rate(address: str, request: bytes, rate: float, seconds: float, timeout_s: float) -> Measured:
    """Open loop: a constant rate of requests, however long answers take. A late start counts as latency.

    Args:
        address: HOST:PORT.
        request: A serialised ``PredictRequest``.
        rate: Requests per second.
        seconds: The duration.
        timeout_s: The deadline of a request.

    Returns:
        The outcome.
    """

    async def load(sender: Sender) -> None:
        started, asked = time.perf_counter(), []
        for number in range(round(rate * seconds)):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(sender.send(due)))
        await asyncio.gather(*asked)

    return asyncio.run(_measure(address, request, timeout_s, load))


class Sender:
    """Sends the same request on a channel any number of times, and records the outcomes.

    Args:
        channel: The channel.
        request: A serialised ``PredictRequest``.
        timeout_s: The deadline of a request.

    Attributes:
        outcomes: The number of requests by status, see ``Measured``.
        latencies: Milliseconds to each answer.
    """

    def __init__(self, channel: grpc.aio.Channel, request: bytes, timeout_s: float) -> None:
        self._predict = channel.unary_unary(PREDICT)  # sends bytes, without serialisation
        self._request = request
        self._timeout_s = timeout_s
        self._expected: int | None = None
        self.outcomes: dict[str, int] = {}
        self.latencies: list[float] = []

    async def send(self, due: float) -> None:
        """Send the request once.

        Args:
            due: The time from which the latency counts, by ``time.perf_counter``.
        """
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
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        sender = Sender(channel, request, timeout_s)
        await sender.send(time.perf_counter())  # connects
        sender.outcomes, sender.latencies = {}, []
        cpu, started = time.process_time(), time.perf_counter()
        await load(sender)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Measured(seconds, sender.outcomes, np.array(sender.latencies), cpu)


def describe(measured: Measured) -> dict[str, Any]:
    """The figures as JSON values, rounded."""
    return {
        "rate": round(measured.rate, 1),
        **{f"p{share}_ms": measured.percentile(share) for share in PERCENTILES},
        "client_cpu_us": round(measured.client_cpu_s / max(1, measured.requests) * 1e6),
        "outcomes": measured.outcomes,
    }
