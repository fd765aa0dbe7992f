"""What the server counts, for ModelStatistics and for Prometheus: answers, refusals, runs, and where the time went."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from evalmode.artifact.image_statistics import crop_centre
from evalmode.artifact.tensors import Tensors
from evalmode.errors import RequestError
from evalmode.images.pixels import Pixels
from evalmode.runtime.model import Model
from evalmode.wire import open_inference_pb2 as wire
from serving.engine.batch import count_rows
from serving.services.drift import WINDOW
from serving.services.status import explain

log = logging.getLogger(__name__)

# Upper bounds of the histograms of times, in microseconds; the last bucket has none.
BOUNDS_US = (
    *(50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000),
    *(1_000_000, 2_000_000, 5_000_000, 10_000_000),
)


@dataclass
class Durations:
    """How often something took how long.

    Attributes:
        ns: all of it, nanoseconds.
        buckets: how many took at most each of ``BOUNDS_US`` and longer than the one before; the last: longer than all.
    """

    ns: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_US) + 1))

    @property
    def count(self) -> int:
        """How often."""
        return sum(self.buckets)

    def copy(self) -> Durations:
        """Durations of the same values."""
        return Durations(self.ns, self.buckets.copy())

    def add(self, us: int) -> None:
        """Note one more."""
        self.ns += us * 1000
        self.buckets[bisect_left(BOUNDS_US, us)] += 1

    def to_wire(self) -> wire.StatisticDuration:
        """As ModelStatistics tells it."""
        return wire.StatisticDuration(count=self.count, ns=self.ns)


@dataclass(eq=False)
class Counts:
    """Of one version of a model; of none, what was refused before its model was known.

    Attributes:
        last_ms: when the last request was answered, milliseconds since 1970.
        inputs: how many were answered.
        codes: requests by the code and the reason they ended with.
        labels: answers by the most probable label, in the order in which they were first answered.
        runs: of the network, by their batch.
        durations: by their names in InferStatistics.
        recent: the middles of the last images, for their moments.
    """

    last_ms: int = 0
    inputs: int = 0
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    runs: dict[int, Durations] = field(default_factory=lambda: defaultdict(Durations))
    durations: dict[str, Durations] = field(default_factory=lambda: defaultdict(Durations))
    recent: deque[Pixels] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def copy(self) -> Counts:
        """Counts of the same values, which do not change."""
        return replace(
            self,
            codes=self.codes.copy(),
            labels=self.labels.copy(),
            runs={size: run.copy() for size, run in self.runs.items()},
            durations={name: spent.copy() for name, spent in self.durations.items()},
            recent=self.recent.copy(),
        )


class Statistics:
    """Counts since the server started, of both services; safe to call from several threads.

    Attributes:
        lock: held while ``counts`` is read or changed.
        counts: by name and version of a model.
        answered: requests that were answered, of all versions that were ever served.
        refused: what was refused on arrival, by code and reason; written by one thread, which takes no lock.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: dict[tuple[str, str], Counts] = defaultdict(Counts)
        self.answered = 0
        self.refused: Counter[tuple[str, str]] = Counter()

    def count_run(self, model: Model, inputs: int, inference_us: int) -> None:
        """Note that the network ran once, on a batch of so many inputs."""
        with self.lock:
            self.counts[model.name, model.version].runs[inputs].add(inference_us)

    def count_answer(
        self, model: Model, inputs: Tensors, outputs: Tensors, decode_us: int, wait_us: int, inference_us: int
    ) -> None:
        """Note a request that was answered: what came, what it got, and where its time went."""
        centres = [image for name in model.manifest.image_inputs for image in crop_centre(inputs[name])]
        predicted = model.manifest.predict_labels(outputs)
        with self.lock:
            counts = self.counts[model.name, model.version]
            self.answered += 1
            counts.last_ms = time.time_ns() // 1_000_000
            counts.inputs += count_rows(inputs)
            counts.codes["OK", ""] += 1
            counts.labels.update(predicted)
            counts.recent.extend(centres)
            durations = counts.durations
            durations["compute_input"].add(decode_us)
            durations["queue"].add(wait_us)
            durations["compute_infer"].add(inference_us)
            durations["success"].add(decode_us + wait_us + inference_us)
        if log.isEnabledFor(logging.DEBUG):
            times = {"decode_us": decode_us, "wait_us": wait_us, "inference_us": inference_us}
            told = {"model": model.name, "version": model.version, "inputs": count_rows(inputs), **times}
            log.debug("answered %s", " ".join(f"{name}={value}" for name, value in told.items()), extra=told)

    def count_refusal(self, model: Model | None, seconds: float, error: Exception) -> None:
        """Note a request that was not answered, how long that took, and why."""
        with self.lock:
            counts = self.counts[(model.name, model.version) if model else ("", "")]
            counts.codes[explain(error)] += 1
            counts.durations["fail"].add(round(seconds * 1e6))

    def count_early_refusal(self, error: RequestError) -> None:
        """Note a call that was refused before its message was read; for one thread alone, which takes no lock."""
        self.refused[explain(error)] += 1

    def keep(self, models: Iterable[Model]) -> None:
        """Forget what was counted of other models: a server may see thousands of versions."""
        kept = {("", ""), *((model.name, model.version) for model in models)}
        with self.lock:
            for key in self.counts.keys() - kept:
                del self.counts[key]

    def copy(self) -> dict[tuple[str, str], Counts]:
        """What was counted until now, by name and version of a model."""
        with self.lock:
            return {version: counts.copy() for version, counts in self.counts.items()}

    def tell(self, model: Model) -> wire.ModelStatistics:
        """What is known of a model."""
        with self.lock:
            counts = self.counts[model.name, model.version]
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
