"""Metrics for Prometheus, collected at each scrape. docs/operating.md lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

import evalmode
from serving.engine.scheduler import Load
from serving.services.drift import LIMIT, WINDOW, drifts, measure_drift
from serving.services.models import Models
from serving.services.statistics import BOUNDS_US, Counts, Durations, Statistics
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
    "evalmode_slots": Metric("gauge", (), "Number of slots: inferences that can run at the same time."),
    "evalmode_slots_busy": Metric("gauge", (), "Number of slots that are running an inference."),
    "evalmode_requests_waiting": Metric("gauge", (), "Number of requests that are waiting for a slot."),
    "evalmode_requests_in_flight": Metric(
        "gauge", (), "Number of requests that have arrived and are not answered yet."
    ),
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
    "evalmode_info": Metric("gauge", ("release",), "Release of evalmode. The value is always 1."),
}


class Metrics:
    """Collects the metrics, as a collector of prometheus_client.

    Args:
        models: The models, and the versions in the repository.
        statistics: The counters and histograms.
        load: Returns the current load of the server.
        labels: How many labels of a version have a counter of their own, at least 0.
    """

    def __init__(self, models: Models, statistics: Statistics, load: Callable[[], Load], labels: int) -> None:
        self._models = models
        self._statistics = statistics
        self._load = load
        self._labels = labels

    def collect(self) -> Iterator[Any]:
        """Yield every metric with its current values."""
        families = {name: FAMILIES[one.kind](name, one.help, labels=one.labels) for name, one in METRICS.items()}
        families["evalmode_info"].add_metric((evalmode.__version__,), 1)
        load = self._load()
        for name, value in zip(("slots", "slots_busy", "requests_waiting", "requests_in_flight"), load, strict=True):
            families[f"evalmode_{name}"].add_metric((), value)
        for entry in self._models.list_entries():
            version = (entry.name, entry.version)
            families["evalmode_model_ready"].add_metric(version, int(entry.ready))
            families["evalmode_model_load_failed"].add_metric(version, int(entry.failed))
        manifests = {}
        for model in self._models.loaded:
            manifests[model.name, model.version] = model.manifest
            facts = (model.digest, model.provider.name, model.manifest.certificate is not None, model.batch_invariant)
            families["evalmode_model_info"].add_metric(
                (model.name, model.version, *(str(one).lower() if one in (True, False) else one for one in facts)), 1
            )
        recent = {}
        unknown = self._statistics.refused.copy()  # refused before the model was known
        unknown[FAULT] += 0
        for version, counts in {**dict.fromkeys(manifests, Counts()), **self._statistics.copy()}.items():
            if version == ("", ""):
                unknown.update(counts.codes)
                continue
            _add_counts(families, version, counts, self._labels)
            recent[version] = tuple(counts.recent)
        for code, count in unknown.items():
            families["evalmode_requests_total"].add_metric(("", "", *code), count)
        for version, centres in recent.items():
            recorded = manifests[version].properties.get("moments", {}).get("images") if version in manifests else None
            if recorded and len(centres) >= MIN_IMAGES:
                drift = measure_drift(centres, recorded)
                for (moment, channel), distance in drift.items():
                    families["evalmode_input_drift"].add_metric((*version, moment, str(channel)), distance)
                families["evalmode_input_drifted"].add_metric(version, int(drifts(drift.values())))
        return iter(families.values())


def _add_counts(families: dict[str, Any], version: tuple[str, str], counts: Counts, labels: int) -> None:
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
