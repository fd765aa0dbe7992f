"""What ModelStatistics tells: how many requests a model answered, in how many runs, and where the time went."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from serving.model import Model
from serving.wire import open_inference_pb2 as wire


@dataclass
class _Durations:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def to_wire(self) -> wire.StatisticDuration:
        return wire.StatisticDuration(count=self.count, ns=self.ns)


@dataclass
class _Counts:
    """Of one version of a model."""

    last_ms: int = 0
    inputs: int = 0
    runs: dict[int, _Durations] = field(default_factory=lambda: defaultdict(_Durations))  # by their batch
    durations: dict[str, _Durations] = field(
        default_factory=lambda: defaultdict(_Durations)
    )  # by InferStatistics' names


class Statistics:
    """Counts since the server started, of both services; safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], _Counts] = defaultdict(_Counts)

    def count_run(self, model: Model, inputs: int, inference_us: int) -> None:
        """Note that the network ran once, on a batch of so many inputs."""
        with self._lock:
            self._counts[model.name, model.version].runs[inputs].add(inference_us * 1000)

    def count_answer(self, model: Model, inputs: int, decode_us: int, wait_us: int, inference_us: int) -> None:
        """Note a request that was answered: its inputs, and where its time went."""
        with self._lock:
            counts = self._counts[model.name, model.version]
            counts.last_ms = time.time_ns() // 1_000_000
            counts.inputs += inputs
            durations = counts.durations
            durations["compute_input"].add(decode_us * 1000)
            durations["queue"].add(wait_us * 1000)
            durations["compute_infer"].add(inference_us * 1000)
            durations["success"].add((decode_us + wait_us + inference_us) * 1000)

    def count_refusal(self, model: Model, seconds: float) -> None:
        """Note a request that was not answered, and how long that took."""
        with self._lock:
            self._counts[model.name, model.version].durations["fail"].add(round(seconds * 1e9))

    def tell(self, model: Model) -> wire.ModelStatistics:
        """What is known of a model."""
        with self._lock:
            counts = self._counts[model.name, model.version]
            return wire.ModelStatistics(
                name=model.name,
                version=model.version,
                last_inference=counts.last_ms,
                inference_count=counts.inputs,
                execution_count=sum(run.count for run in counts.runs.values()),
                inference_stats=wire.InferStatistics(
                    **{name: spent.to_wire() for name, spent in counts.durations.items()}
                ),
                batch_stats=[
                    wire.InferBatchStatistics(batch_size=size, compute_infer=run.to_wire())
                    for size, run in sorted(counts.runs.items())
                ],
            )
