"""Counters and durations of requests and inference runs, for ModelStatistics and for Prometheus."""

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
from serving.services.drift import WINDOW
from serving.services.status import explain

log = logging.getLogger(__name__)

# Upper bounds of the duration histograms, in microseconds. The last bucket has no upper bound.
BOUNDS_US = (
    *(50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000),
    *(1_000_000, 2_000_000, 5_000_000, 10_000_000),
)


@dataclass
class Durations:
    """A histogram of durations.

    Attributes:
        ns: The sum of all durations, in nanoseconds.
        buckets: The number of durations in each bucket, not cumulative. Bucket i ends at ``BOUNDS_US[i]``, inclusive;
            the last bucket holds longer durations.
    """

    ns: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_US) + 1))

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.buckets)

    def copy(self) -> Durations:
        """A copy that does not change."""
        return Durations(self.ns, self.buckets.copy())

    def add(self, us: int) -> None:
        """Count one duration, in microseconds."""
        self.ns += us * 1000
        self.buckets[bisect_left(BOUNDS_US, us)] += 1

    def to_wire(self) -> wire.StatisticDuration:
        """The count and the sum as a message of ModelStatistics."""
        return wire.StatisticDuration(count=self.count, ns=self.ns)


@dataclass(eq=False)
class Counts:
    """The counters of one version of a model, or of requests that were refused before their model was known.

    Attributes:
        last_ms: The time of the last answer, in milliseconds since 1970.
        inputs: The number of inputs that were answered.
        codes: The number of requests, by status code and reason.
        labels: The number of inputs, by predicted label, in the order in which the labels were first predicted.
        runs: The durations of inference runs, by batch size.
        durations: The durations of requests, by their names in InferStatistics.
        recent: The centres of the last ``WINDOW`` images, from which drift is measured.
    """

    last_ms: int = 0
    inputs: int = 0
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    runs: dict[int, Durations] = field(default_factory=lambda: defaultdict(Durations))
    durations: dict[str, Durations] = field(default_factory=lambda: defaultdict(Durations))
    recent: deque[Pixels] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def copy(self) -> Counts:
        """A copy that does not change."""
        return replace(
            self,
            codes=self.codes.copy(),
            labels=self.labels.copy(),
            runs={size: run.copy() for size, run in self.runs.items()},
            durations={name: spent.copy() for name, spent in self.durations.items()},
            recent=self.recent.copy(),
        )


class Statistics:
    """The counters of both services since the server started. Methods may be called from several threads.

    Attributes:
        lock: Held while ``counts`` is read or changed.
        counts: The counters of each version of a model, by name and version.
        answered: The number of requests that were answered, over all versions.
        refused: The number of calls that were refused on arrival, by status code and reason. Only one thread writes
            it, without the lock.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: dict[tuple[str, str], Counts] = defaultdict(Counts)
        self.answered = 0
        self.refused: Counter[tuple[str, str]] = Counter()

    def count_run(self, model: Model, inputs: int, inference_us: int) -> None:
        """Count one inference run.

        Args:
            model: The model that ran.
            inputs: The batch size.
            inference_us: The duration in microseconds.
        """
        with self.lock:
            self.counts[model.name, model.version].runs[inputs].add(inference_us)

    def count_answer(
        self, model: Model, inputs: Tensors, outputs: Tensors, decode_us: int, wait_us: int, inference_us: int
    ) -> None:
        """Count a request that was answered.

        Args:
            model: The model that answered it.
            inputs: The request's inputs by name, with the batch as the first axis.
            outputs: The request's rows of the outputs, by name.
            decode_us: The time for parsing and decoding, in microseconds.
            wait_us: The time that the request waited for a slot, in microseconds.
            inference_us: The time that its batch ran, in microseconds.
        """
        centres = [image for name in model.manifest.image_inputs for image in crop_centre(inputs[name])]
        predicted = model.manifest.predict_labels(outputs)
        rows = len(next(iter(inputs.values())))
        with self.lock:
            counts = self.counts[model.name, model.version]
            self.answered += 1
            counts.last_ms = time.time_ns() // 1_000_000
            counts.inputs += rows
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
            fields = {"model": model.name, "version": model.version, "inputs": rows, **times}
            log.debug("answered %s", " ".join(f"{name}={value}" for name, value in fields.items()), extra=fields)

    def count_refusal(self, model: Model | None, seconds: float, error: Exception) -> None:
        """Count a request that ended with an error.

        Args:
            model: The model that the request named; None if it was not known yet.
            seconds: The time from the arrival of the request to the error.
            error: The error.
        """
        with self.lock:
            counts = self.counts[(model.name, model.version) if model else ("", "")]
            counts.codes[explain(error)] += 1
            counts.durations["fail"].add(round(seconds * 1e6))

    def count_early_refusal(self, error: RequestError) -> None:
        """Count a call that was refused before its message was read. Call it from one thread only: it takes no lock."""
        self.refused[explain(error)] += 1

    def keep(self, models: Iterable[Model]) -> None:
        """Drop the counters of all other models: a server may load thousands of versions over time."""
        kept = {("", ""), *((model.name, model.version) for model in models)}
        with self.lock:
            for key in self.counts.keys() - kept:
                del self.counts[key]

    def copy(self) -> dict[tuple[str, str], Counts]:
        """A copy of all counters, by name and version of a model."""
        with self.lock:
            return {version: counts.copy() for version, counts in self.counts.items()}

    def describe(self, model: Model) -> wire.ModelStatistics:
        """The counters of a model as ModelStatistics returns them."""
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
