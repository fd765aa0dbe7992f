"""Metrics for Prometheus, collected at each scrape. docs/reference/metrics.md lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate, islice
from typing import Any, NamedTuple

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

import evalmode
from evalmode.artifact.image_statistics import MOMENTS
from serving.services.drift import LIMIT, WINDOW, RecentImage, drifts, measure_drift
from serving.services.figures import BOUNDS_US, UNKNOWN, Counts, Durations, Figures, Version
from serving.services.status import INTERNAL_REASON

MIN_IMAGES = 100  # below it, drift is not reported
FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
TIMES = {  # metric -> its name in InferStatistics
    "evalmode_decode_seconds": "compute_input",
    "evalmode_wait_seconds": "queue",
    "evalmode_inference_seconds": "compute_infer",
    "evalmode_request_seconds": "success",
}
# Exported as 0 from the start, because Prometheus counts no increase when a series first appears.
FAULT = (INTERNAL_REASON, INTERNAL_REASON)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
VERSION = ("model", "version")
OTHERS = "(other)"  # stands for all labels without a counter of their own


class Metric(NamedTuple):
    """A metric as it is documented.

    Attributes:
        kind: "counter", "gauge" or "histogram".
        labels: The names of its labels.
        help: Its help text.
    """

    kind: str
    labels: tuple[str, ...]
    help: str


METRICS = {
    "evalmode_requests_total": Metric(
        "counter",
        (*VERSION, "code", "reason"),
        "Number of inference requests, by gRPC status code and reason. The labels model and version are empty if the "
        "request was refused before its model was known.",
    ),
    "evalmode_inputs_total": Metric("counter", VERSION, "Number of inputs in answered requests."),
    "evalmode_predictions_total": Metric(
        "counter",
        (*VERSION, "label"),
        "Number of inputs, by predicted label. A label appears after its first prediction. The label "
        f"{OTHERS} counts predictions of labels after the first N distinct ones (N is --label-metrics).",
    ),
    "evalmode_decode_seconds": Metric(
        "histogram", VERSION, "Time to parse an answered request and decode its images, in seconds."
    ),
    "evalmode_wait_seconds": Metric(
        "histogram", VERSION, "Time that an answered request waited for a slot, in seconds."
    ),
    "evalmode_inference_seconds": Metric(
        "histogram", VERSION, "Time that the batch of an answered request took to run, in seconds."
    ),
    "evalmode_request_seconds": Metric(
        "histogram", VERSION, "Time to decode, wait and run the network for an answered request, in seconds."
    ),
    "evalmode_batch_size": Metric("histogram", VERSION, "Number of inputs in one run of the network."),
    "evalmode_slots": Metric("gauge", (), "Number of slots: inferences and small decodes that can run at once."),
    "evalmode_slots_busy": Metric("gauge", (), "Number of slots in use."),
    "evalmode_requests_waiting": Metric("gauge", (), "Number of requests that are waiting for a slot."),
    "evalmode_requests_in_flight": Metric(
        "gauge", (), "Number of requests that have arrived and are not answered yet."
    ),
    "evalmode_ready": Metric("gauge", (), "1 if the server answers requests, as /readyz reports, otherwise 0."),
    "evalmode_model_ready": Metric(
        "gauge",
        VERSION,
        "1 if the version is loaded, 0 if it is in the repository but not loaded, such as an old version. "
        "RepositoryIndex reports the reason.",
    ),
    "evalmode_model_load_failed": Metric(
        "gauge", VERSION, "1 if the version cannot be loaded and no newer version is loaded in its place, otherwise 0."
    ),
    "evalmode_model_info": Metric(
        "gauge",
        (*VERSION, "digest", "provider", "certified", "batch_invariant"),
        "Information about a loaded model. The value is always 1.",
    ),
    "evalmode_input_drift": Metric(
        "gauge",
        (*VERSION, "moment", "channel"),
        f"Difference between the last {WINDOW} images and the training images, in standard errors. Exported after "
        f"{MIN_IMAGES} images.",
    ),
    "evalmode_input_drifted": Metric(
        "gauge",
        VERSION,
        f"1 if any evalmode_input_drift of the version exceeds {LIMIT:g} standard errors, otherwise 0.",
    ),
    "evalmode_workers": Metric(
        "gauge", ("state",), "Number of workers, configured and ready. Only exported if there are several."
    ),
    "evalmode_worker_restarts_total": Metric(
        "counter", (), "Number of times that a worker was started again. Only exported if there are several."
    ),
    "evalmode_info": Metric("gauge", ("release",), "Release of evalmode. The value is always 1."),
}


class Metrics:
    """Collects the metrics, as a collector of prometheus_client.

    Args:
        read: Returns the figures of the server.
        labels: How many labels of a version have a counter of their own, at least 0.
        is_ready: Returns whether the server answers requests.
    """

    def __init__(self, read: Callable[[], Figures], labels: int, is_ready: Callable[[], bool]) -> None:
        self._read = read
        self._labels = labels
        self._is_ready = is_ready

    def collect(self) -> Iterator[Any]:
        """Yield every metric with its current values."""
        figures = self._read()
        families = {name: FAMILIES[one.kind](name, one.help, labels=one.labels) for name, one in METRICS.items()}
        families["evalmode_info"].add_metric((evalmode.__version__,), 1)
        families["evalmode_ready"].add_metric((), int(self._is_ready()))
        _add_state(families, figures)
        unknown = figures.refused.copy()  # refused before the model was known
        unknown[FAULT] += 0
        for version, counts in {**dict.fromkeys(figures.models, Counts()), **figures.counts}.items():
            if version == UNKNOWN:
                unknown.update(counts.codes)
            else:
                _add_counts(families, version, counts, self._labels)
        for code, count in unknown.items():
            families["evalmode_requests_total"].add_metric((*UNKNOWN, *code), count)
        for version, facts in figures.models.items():
            if facts.moments and version in figures.counts:
                _add_drift(families, version, figures.counts[version].recent, facts.moments)
        return iter(families.values())


def _add_state(families: dict[str, Any], figures: Figures) -> None:
    """Add what describes the server, its workers and its models, apart from counters."""
    names = ("slots", "slots_busy", "requests_waiting", "requests_in_flight")
    for name, value in zip(names, figures.load, strict=True):
        families[f"evalmode_{name}"].add_metric((), value)
    if figures.workers:
        families["evalmode_workers"].add_metric(("configured",), figures.workers.configured)
        families["evalmode_workers"].add_metric(("ready",), figures.workers.ready)
        families["evalmode_worker_restarts_total"].add_metric((), figures.workers.restarts)
    for version, state in figures.versions.items():
        families["evalmode_model_ready"].add_metric(version, int(state.ready))
        families["evalmode_model_load_failed"].add_metric(version, int(state.failed))
    for version, facts in figures.models.items():
        flags = (str(flag).lower() for flag in (facts.certified, facts.batch_invariant))
        families["evalmode_model_info"].add_metric((*version, facts.digest, facts.provider, *flags), 1)


def _add_drift(
    families: dict[str, Any], version: Version, recent: Collection[RecentImage], recorded: Mapping[str, Any]
) -> None:
    """Add the drift of one version, if it has received enough images."""
    shape = len(MOMENTS), len(recorded[MOMENTS[0]]["mean"])  # another file of the version had other images
    moments = [image.moments for image in recent if image.moments.shape == shape]
    if len(moments) < MIN_IMAGES:
        return
    drift = measure_drift(np.stack(moments), recorded)
    for (moment, channel), distance in drift.items():
        families["evalmode_input_drift"].add_metric((*version, moment, str(channel)), distance)
    families["evalmode_input_drifted"].add_metric(version, int(drifts(drift.values())))


def _add_counts(families: dict[str, Any], version: Version, counts: Counts, labels: int) -> None:
    """Add the counters of one version, with a counter for each of its first ``labels`` labels."""
    for code, count in {FAULT: 0, **counts.codes}.items():
        families["evalmode_requests_total"].add_metric((*version, *code), count)
    families["evalmode_inputs_total"].add_metric(version, counts.inputs)
    shown = Counter(dict(islice(counts.labels.items(), labels)))
    if len(counts.labels) > labels:
        shown[OTHERS] += sum(islice(counts.labels.values(), labels, None))
    for label, count in shown.items():
        printable = label.encode(errors="backslashreplace").decode()  # half a surrogate pair would break every scrape
        families["evalmode_predictions_total"].add_metric((*version, printable), count)
    for name, phase in TIMES.items():
        durations = counts.durations.get(phase, Durations())
        bounds = [*(bound / 1e6 for bound in BOUNDS_US), "+Inf"]
        buckets = list(zip(map(str, bounds), accumulate(durations.buckets), strict=True))
        families[name].add_metric(version, buckets, durations.ns / 1e9)
    sizes = {size: run.count for size, run in counts.runs.items()}
    buckets = [(str(bound), sum(n for size, n in sizes.items() if size <= bound)) for bound in BATCHES]
    total = sum(size * count for size, count in sizes.items())
    families["evalmode_batch_size"].add_metric(version, [*buckets, ("+Inf", sum(sizes.values()))], total)
