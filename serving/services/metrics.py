"""What Prometheus is told, gathered when it asks; docs/operating.md lists it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

import serving
from serving.batching import Load
from serving.drift import LIMIT, WINDOW, drifts, measure_drift
from serving.services.models import Models
from serving.services.statistics import BOUNDS_US, Counts, Durations, Statistics

LEAST_IMAGES = 100  # that drift is told of
FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
TIMES = {  # a metric -> its name in InferStatistics
    "evalmode_decode_seconds": "compute_input",
    "evalmode_wait_seconds": "queue",
    "evalmode_inference_seconds": "compute_infer",
    "evalmode_request_seconds": "success",
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
VERSION = ("model", "version")


class Described(NamedTuple):
    """A metric as it is documented: counter, gauge or histogram; its labels; what it says."""

    kind: str
    labels: tuple[str, ...]
    says: str


METRICS = {
    "evalmode_requests_total": Described(
        "counter",
        (*VERSION, "code", "reason"),
        "requests for predictions that ended so; no model: refused before it was known",
    ),
    "evalmode_inputs_total": Described("counter", VERSION, "inputs that were answered"),
    "evalmode_predictions_total": Described("counter", (*VERSION, "label"), "answers whose most probable label it was"),
    "evalmode_decode_seconds": Described("histogram", VERSION, "from bytes to what the network takes, answers only"),
    "evalmode_wait_seconds": Described("histogram", VERSION, "waiting for a slot, answers only"),
    "evalmode_inference_seconds": Described("histogram", VERSION, "the network, the whole batch of it, answers only"),
    "evalmode_request_seconds": Described("histogram", VERSION, "decoding, waiting and network, answers only"),
    "evalmode_batch_size": Described("histogram", VERSION, "inputs that ran as one batch"),
    "evalmode_slots": Described("gauge", (), "inferences that may run at the same time"),
    "evalmode_slots_busy": Described("gauge", (), "inferences that run"),
    "evalmode_requests_waiting": Described("gauge", (), "requests that wait for a slot"),
    "evalmode_requests_in_flight": Described("gauge", (), "requests that arrived and are not answered"),
    "evalmode_model_ready": Described(
        "gauge", VERSION, "1: loaded; 0: in the repository and not loaded, for the reason that RepositoryIndex tells"
    ),
    "evalmode_model_info": Described(
        "gauge", (*VERSION, "digest", "provider", "certified", "batch_invariant"), "1 for each model that is loaded"
    ),
    "evalmode_input_drift": Described(
        "gauge",
        (*VERSION, "moment", "channel"),
        f"standard errors between the last {WINDOW} images and those of training, from {LEAST_IMAGES} images on",
    ),
    "evalmode_input_drifted": Described("gauge", VERSION, f"1: a moment is {LIMIT:g} standard errors off, or more"),
    "evalmode_info": Described("gauge", ("release",), "1, with the release of evalmode"),
}


class Metrics:
    """A collector of prometheus_client.

    Args:
        models: what is served.
        statistics: what was counted.
        load: how much there is to do.
    """

    def __init__(self, models: Models, statistics: Statistics, load: Callable[[], Load]) -> None:
        self._models = models
        self._statistics = statistics
        self._load = load

    def collect(self) -> Iterator[Any]:
        """Every metric with its values now."""
        families = {
            name: FAMILIES[one.kind](name, f"{one.says[0].upper()}{one.says[1:]}.", labels=one.labels)
            for name, one in METRICS.items()
        }
        families["evalmode_info"].add_metric((serving.__version__,), 1)
        load = self._load()
        for name, value in zip(("slots", "slots_busy", "requests_waiting", "requests_in_flight"), load, strict=True):
            families[f"evalmode_{name}"].add_metric((), value)
        for entry in self._models.list_entries():
            families["evalmode_model_ready"].add_metric((entry.name, entry.version), int(entry.ready))
        manifests = {}
        for model in self._models.loaded:
            manifests[model.name, model.version] = model.manifest
            said = (model.digest, model.provider, model.manifest.certificate is not None, model.batch_invariant)
            families["evalmode_model_info"].add_metric(
                (model.name, model.version, *(str(one).lower() if one in (True, False) else one for one in said)), 1
            )
        recent = {}
        unknown = self._statistics.refused.copy()  # what was refused before its model was known
        for version, counts in self._statistics.copy().items():
            if version == ("", ""):
                unknown.update(counts.codes)
                continue
            labels = manifests[version].labels if version in manifests else ()
            _add_counts(families, version, counts, labels)
            recent[version] = tuple(counts.recent)
        for code, count in unknown.items():
            families["evalmode_requests_total"].add_metric(("", "", *code), count)
        for version, middles in recent.items():
            told = manifests[version].properties.get("moments", {}).get("images") if version in manifests else None
            if told and len(middles) >= LEAST_IMAGES:
                drift = measure_drift(middles, told)
                for (moment, channel), distance in drift.items():
                    families["evalmode_input_drift"].add_metric((*version, moment, str(channel)), distance)
                families["evalmode_input_drifted"].add_metric(version, int(drifts(drift.values())))
        return iter(families.values())


def _add_counts(families: dict[str, Any], version: tuple[str, str], counts: Counts, labels: tuple[str, ...]) -> None:
    """What was counted of one version."""
    for code, count in counts.codes.items():
        families["evalmode_requests_total"].add_metric((*version, *code), count)
    families["evalmode_inputs_total"].add_metric(version, counts.inputs)
    for index, label in enumerate(labels):
        families["evalmode_predictions_total"].add_metric((*version, label), counts.labels[index])
    for name, told in TIMES.items():
        durations = counts.durations.get(told, Durations())
        bounds = [*(bound / 1e6 for bound in BOUNDS_US), "+Inf"]
        buckets = list(zip(map(str, bounds), accumulate(durations.buckets), strict=True))
        families[name].add_metric(version, buckets, durations.ns / 1e9)
    sizes = {size: run.count for size, run in counts.runs.items()}
    buckets = [(str(bound), sum(n for size, n in sizes.items() if size <= bound)) for bound in BATCHES]
    total = sum(size * count for size, count in sizes.items())
    families["evalmode_batch_size"].add_metric(version, [*buckets, ("+Inf", sum(sizes.values()))], total)
