"""Counts requests and inference runs of this process, for ModelStatistics and for Prometheus."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from evalmode.artifact.image_statistics import crop_centre
from evalmode.artifact.tensors import Tensors
from evalmode.errors import RequestError
from evalmode.runtime.model import Model
from serving.engine.scheduler import Load
from serving.services.drift import RecentImage
from serving.services.figures import UNKNOWN, Counts, Figures, ModelFacts, Version, VersionState
from serving.services.loaded import LoadedModels
from serving.services.status import explain

log = logging.getLogger(__name__)


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
        self.counts: dict[Version, Counts] = defaultdict(Counts)
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
        answered_ns, images = time.time_ns(), []
        if _find_moments(model):  # otherwise there is no drift to measure
            images = [
                RecentImage(answered_ns, centre)
                for name in model.manifest.image_inputs
                for centre in crop_centre(inputs[name])
            ]
        predicted = model.manifest.predict_labels(outputs)
        rows = len(next(iter(inputs.values())))
        with self.lock:
            counts = self.counts[model.name, model.version]
            self.answered += 1
            counts.last_ms = answered_ns // 1_000_000
            counts.inputs += rows
            counts.codes["OK", ""] += 1
            for label in predicted:
                counts.labels[label] += 1
            counts.recent.extend(images)
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
            counts = self.counts[(model.name, model.version) if model else UNKNOWN]
            counts.codes[explain(error)] += 1
            counts.durations["fail"].add(round(seconds * 1e6))

    def count_early_refusal(self, error: RequestError) -> None:
        """Count a call that was refused before its message was read. Call it from one thread only: it takes no lock."""
        self.refused[explain(error)] += 1

    def keep(self, models: Iterable[Model]) -> None:
        """Drop the counters of all other models: a server may load thousands of versions over time."""
        kept = {UNKNOWN, *((model.name, model.version) for model in models)}
        with self.lock:
            for key in self.counts.keys() - kept:
                del self.counts[key]

    def copy(self) -> dict[Version, Counts]:
        """A copy of all counters, by name and version of a model."""
        with self.lock:
            return {version: counts.copy() for version, counts in self.counts.items()}


def take_figures(models: LoadedModels, statistics: Statistics, load: Load, images: bool = True) -> Figures:
    """Take the figures of this process.

    Args:
        models: Its models.
        statistics: Its counters.
        load: Its load.
        images: Whether the moments of the recent images are measured, which drift follows from. It takes as long as
            many requests. If they are not, the figures have no recent images.
    """
    facts = {
        (model.name, model.version): ModelFacts(
            model.digest,
            model.provider.name,
            model.manifest.certificate is not None,
            model.batch_invariant,
            _find_moments(model),
        )
        for model in models.loaded
    }
    counts = statistics.copy()
    for version, one in counts.items():
        if not (images and version in facts and facts[version].moments):
            one.recent.clear()
        for image in one.recent:
            _ = image.moments
    return Figures(
        load,
        {(entry.name, entry.version): VersionState(entry.ready, entry.failed) for entry in models.list_entries()},
        facts,
        counts,
        statistics.refused.copy(),
        statistics.answered,
    )


def _find_moments(model: Model) -> Mapping[str, Any] | None:
    """The recorded statistics of the training images; None if there are none."""
    return model.manifest.properties.get("moments", {}).get("images")  # type: ignore[no-any-return]
