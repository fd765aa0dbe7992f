"""The figures of a server at one time, from which metrics and ModelStatistics are made.

They are plain data. A server of one process takes its own; a server of several workers adds those of each.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from serving.engine.scheduler import Load
from serving.services.drift import WINDOW, RecentImage

# Upper bounds of the duration histograms, in microseconds. The last bucket has no upper bound.
BOUNDS_US = (
    *(50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000),
    *(1_000_000, 2_000_000, 5_000_000, 10_000_000),
)

Version = tuple[str, str]  # the name of a model and its version; both are "" if the model of a request is not known
UNKNOWN: Version = ("", "")


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

    def merge(self, other: Durations) -> None:
        """Add the durations of another histogram."""
        self.ns += other.ns
        self.buckets = [mine + more for mine, more in zip(self.buckets, other.buckets, strict=True)]


@dataclass(eq=False)
class Counts:
    """The counters of one version of a model, or of requests that were refused before their model was known.

    Attributes:
        began_ns: The time of the first count, in nanoseconds since 1970. Counters that begin again have another one.
        last_ms: The time of the last answer, in milliseconds since 1970.
        inputs: The number of inputs that were answered.
        codes: The number of requests, by status code and reason.
        labels: The number of inputs, by predicted label, in the order in which the labels were first predicted.
        runs: The durations of inference runs, by batch size.
        durations: The durations of requests, by their names in InferStatistics.
        recent: The last ``WINDOW`` images, from which drift is measured.
    """

    began_ns: int = field(default_factory=time.time_ns)
    last_ms: int = 0
    inputs: int = 0
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    runs: dict[int, Durations] = field(default_factory=lambda: defaultdict(Durations))
    durations: dict[str, Durations] = field(default_factory=lambda: defaultdict(Durations))
    recent: deque[RecentImage] = field(default_factory=lambda: deque(maxlen=WINDOW))

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

    def merge(self, other: Counts) -> None:
        """Add the counters of another process. Its labels come after those that are here, and the last images stay."""
        self.last_ms = max(self.last_ms, other.last_ms)
        self.inputs += other.inputs
        self.codes.update(other.codes)
        self.labels.update(other.labels)
        for size, run in other.runs.items():
            self.runs[size].merge(run)
        for name, spent in other.durations.items():
            self.durations[name].merge(spent)
        if other.recent:
            self.recent = deque(sorted([*self.recent, *other.recent], key=lambda image: image.ns), maxlen=WINDOW)


class VersionState(NamedTuple):
    """The state of a version in the model repository.

    Attributes:
        ready: Whether requests can name it.
        failed: Whether it cannot be loaded, and no newer version is loaded in its place.
    """

    ready: bool
    failed: bool


@dataclass(frozen=True)
class ModelFacts:
    """What metrics show of a loaded version.

    Attributes:
        digest: ``sha256:`` and the hexadecimal digest of the file.
        provider: The name of the execution provider.
        certified: Whether the artifact has a certificate.
        batch_invariant: Whether an input gets the same bits in every batch.
        moments: The statistics of the training images, as ``describe_images`` returns them; None if the artifact has
            none.
    """

    digest: str
    provider: str
    certified: bool
    batch_invariant: bool
    moments: Mapping[str, Any] | None


class Workers(NamedTuple):
    """The worker processes of a server.

    Attributes:
        configured: Their number.
        ready: How many of them are ready for requests.
        restarts: How often one was started again, since the server started.
    """

    configured: int
    ready: int
    restarts: int


@dataclass(frozen=True, eq=False)
class Figures:
    """The figures of a server at one time.

    Attributes:
        load: The load.
        versions: The state of each version that is in the repository or loaded.
        models: The facts of each loaded version.
        counts: The counters of each version since it was loaded, and those of ``UNKNOWN``.
        refused: The number of calls that were refused on arrival, by status code and reason.
        answered: The number of requests that were answered, over all versions.
        workers: The worker processes; None if the server is one process.
    """

    load: Load
    versions: Mapping[Version, VersionState]
    models: Mapping[Version, ModelFacts]
    counts: Mapping[Version, Counts]
    refused: Counter[tuple[str, str]]
    answered: int
    workers: Workers | None = None
