"""The figures of several workers as those of one server.

A worker sends its figures as a snapshot, which is JSON. The supervisor adds the newest snapshot of each worker and what
workers counted that have ended, so that no counter decreases. What a worker counts after its last snapshot is lost if
it is killed; no scrape has shown it.
"""

from __future__ import annotations

import json
import threading
from base64 import b64decode, b64encode
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evalmode.artifact.image_statistics import MOMENTS
from serving.engine.scheduler import Load
from serving.services.drift import WINDOW, RecentImage
from serving.services.figures import (
    BOUNDS_US,
    UNKNOWN,
    Counts,
    Durations,
    Figures,
    ModelFacts,
    Version,
    VersionState,
    Workers,
)

MOMENT = np.dtype("<f4")


def encode_figures(figures: Figures) -> bytes:
    """Encode figures as a snapshot.

    Its size is bounded by the labels of the loaded versions, the batch sizes, the errors of the table, and 200 images
    of 15 moments a version.

    Args:
        figures: The figures of a worker.
    """
    fields = {
        "load": figures.load,
        "versions": [[*version, *state] for version, state in figures.versions.items()],
        "models": [[*version, asdict(facts)] for version, facts in figures.models.items()],
        "counts": [[*version, _encode_counts(counts)] for version, counts in figures.counts.items()],
        "refused": _encode_codes(figures.refused),
        "answered": figures.answered,
        "workers": figures.workers,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_figures(snapshot: bytes) -> Figures:
    """Decode a snapshot.

    Args:
        snapshot: As ``encode_figures`` returns it.

    Raises:
        ValueError: It is not a snapshot of this release.
    """
    try:
        fields = json.loads(snapshot)
        return Figures(
            Load(*fields["load"]),
            {(name, version): VersionState(*state) for name, version, *state in fields["versions"]},
            {(name, version): ModelFacts(**facts) for name, version, facts in fields["models"]},
            {(name, version): _decode_counts(counts) for name, version, counts in fields["counts"]},
            _decode_codes(fields["refused"]),
            fields["answered"],
            fields["workers"] and Workers(*fields["workers"]),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a snapshot of this release: {error!r}") from error


class WorkerFigures:
    """The figures of all workers. Methods may be called from several threads.

    Args:
        workers: The number of workers.
    """

    def __init__(self, workers: int) -> None:
        self._lock = threading.Lock()
        self._newest: list[Figures | None] = [None] * workers
        self._ended: dict[Version, Counts] = {}  # counters of workers that ended, or that began again
        self._refused: Counter[tuple[str, str]] = Counter()  # of workers that ended
        self._answered = 0  # the same
        self._labels: dict[Version, Counter[str]] = {}  # zeros, in the order in which labels were first seen
        self._versions: Mapping[Version, VersionState] = {}  # at the last merge
        self._models: Mapping[Version, ModelFacts] = {}  # the same

    def receive(self, worker: int, snapshot: bytes) -> None:
        """Replace the figures of a worker by newer ones.

        A worker sends its first snapshot once its models are loaded. One without recent images keeps those before.

        Args:
            worker: The number of the worker.
            snapshot: As ``encode_figures`` returns it.

        Raises:
            ValueError: It is not a snapshot of this release.
        """
        new = decode_figures(snapshot)
        with self._lock:
            old = self._newest[worker]
            for version, before in old.counts.items() if old else ():
                counts = new.counts.get(version)
                if counts is None or counts.began_ns != before.began_ns:
                    self._end(version, before)
                elif not counts.recent:
                    counts.recent = before.recent
            self._newest[worker] = new

    def end(self, worker: int) -> None:
        """Keep what a worker has counted. Call it when its process has ended, after its last snapshot was received.

        Args:
            worker: The number of the worker.
        """
        with self._lock:
            figures, self._newest[worker] = self._newest[worker], None
            if figures:
                self._refused.update(figures.refused)
                self._answered += figures.answered
                for version, counts in figures.counts.items():
                    self._end(version, counts)

    def merge(self, workers: Workers) -> Figures:
        """Return the figures of the server.

        Counters and the load are added, except for the number of slots, which workers share. A version is ready if it
        is in every worker, and failed if it is in any. Drift follows from the last images of the whole server. The
        counters of a version end once no worker has it loaded. While no worker runs, no version is ready, and all else
        but the load stays.

        Args:
            workers: What the supervisor knows of the workers.
        """
        with self._lock:
            running = [figures for figures in self._newest if figures]
            if running:
                self._versions = _merge_states(running)
                self._models = dict(item for figures in reversed(running) for item in figures.models.items())
                self._forget((self._ended.keys() | self._labels.keys()) - self._models.keys() - {UNKNOWN})
            else:
                self._versions = {version: state._replace(ready=False) for version, state in self._versions.items()}
            load = Load(*map(sum, zip(Load(0, 0, 0, 0), *(figures.load for figures in running), strict=True)))
            return Figures(
                load._replace(slots=max((figures.load.slots for figures in running), default=0)),
                self._versions,
                self._models,
                self._merge_counts(running),
                sum((figures.refused for figures in running), self._refused),
                sum((figures.answered for figures in running), self._answered),
                workers,
            )

    def _forget(self, versions: Iterable[Version]) -> None:
        """Drop what is kept of versions that no worker has loaded."""
        for version in versions:
            self._ended.pop(version, None)
            self._labels.pop(version, None)

    def _end(self, version: Version, counts: Counts) -> None:
        """Keep counters that do not continue."""
        self._ended.setdefault(version, Counts()).merge(counts)

    def _merge_counts(self, running: Sequence[Figures]) -> dict[Version, Counts]:
        """Add the counters of all workers.

        Labels stay in the order in which they were first seen here: which of them have a counter of their own must not
        change, since that of all others would decrease.
        """
        merged: dict[Version, Counts] = {}
        for counters in (self._ended, *(figures.counts for figures in running)):
            for version, counts in counters.items():
                if version not in merged:
                    merged[version] = Counts(labels=self._labels.get(version, Counter[str]()).copy())
                merged[version].merge(counts)
        self._labels = {version: Counter(dict.fromkeys(counts.labels, 0)) for version, counts in merged.items()}
        return merged


def _merge_states(running: Sequence[Figures]) -> dict[Version, VersionState]:
    """Return the state of each version in the server: ready if it is in every worker, failed if it is in any."""
    unknown = VersionState(ready=False, failed=False)
    return {
        version: VersionState(
            all(figures.versions.get(version, unknown).ready for figures in running),
            any(figures.versions.get(version, unknown).failed for figures in running),
        )
        for version in sorted({version for figures in running for version in figures.versions})
    }


def _encode_counts(counts: Counts) -> dict[str, Any]:
    """Convert counters to JSON values."""
    return {
        "began_ns": counts.began_ns,
        "last_ms": counts.last_ms,
        "inputs": counts.inputs,
        "codes": _encode_codes(counts.codes),
        "labels": counts.labels,
        "runs": [[size, run.ns, run.buckets] for size, run in counts.runs.items()],
        "durations": [[name, spent.ns, spent.buckets] for name, spent in counts.durations.items()],
        "recent": [[image.ns, b64encode(image.moments.astype(MOMENT).tobytes()).decode()] for image in counts.recent],
    }


def _decode_counts(fields: Mapping[str, Any]) -> Counts:
    """Convert JSON values to counters."""
    return Counts(
        fields["began_ns"],
        fields["last_ms"],
        fields["inputs"],
        _decode_codes(fields["codes"]),
        Counter(fields["labels"]),
        {size: _decode_durations(ns, buckets) for size, ns, buckets in fields["runs"]},
        {name: _decode_durations(ns, buckets) for name, ns, buckets in fields["durations"]},
        deque((_decode_image(ns, moments) for ns, moments in fields["recent"]), maxlen=WINDOW),
    )


def _decode_durations(ns: int, buckets: list[int]) -> Durations:
    if len(buckets) != len(BOUNDS_US) + 1:
        raise ValueError(f"not a snapshot of this release: {len(buckets)} buckets")
    return Durations(ns, buckets)


def _decode_image(ns: int, moments: str) -> RecentImage:
    return RecentImage.from_moments(ns, np.frombuffer(b64decode(moments), MOMENT).reshape(len(MOMENTS), -1))


def _encode_codes(codes: Counter[tuple[str, str]]) -> list[list[str | int]]:
    return [[*code, count] for code, count in codes.items()]


def _decode_codes(fields: list[tuple[str, str, int]]) -> Counter[tuple[str, str]]:
    return Counter({(code, reason): count for code, reason, count in fields})
