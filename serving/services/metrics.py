"""What Prometheus is told, gathered when it asks; docs/operating.md lists it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

import evalmode
from serving.engine.batching import Load
from serving.services.drift import LIMIT, WINDOW, drifts, measure_drift
from serving.services.models import Models
from serving.services.statistics import BOUNDS_US, Counts, Durations, Statistics
from serving.services.status import INTERNAL_REASON

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
FAULT = (INTERNAL_REASON, INTERNAL_REASON)  # counted from 0 on: Prometheus sees no increase to the first value
BATCHES = (1, 2, 4, 8, 16, 32, 64)
VERSION = ("model", "version")
OTHERS = "(other)"  # in place of a label


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
    "evalmode_predictions_total": Described(
        "counter",
        (*VERSION, "label"),
        f"answers whose most probable label it was, from its first answer on; {OTHERS}: of all labels beyond the first "
        "--label-metrics that were answered",
    ),
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
        "gauge",
        VERSION,
        "1: loaded; 0: in the repository and not loaded, an old version, say: RepositoryIndex has the reason",
    ),
    "evalmode_model_load_failed": Described(
        "gauge", VERSION, "1: cannot be loaded, and no newer version is loaded in its place; 0: every other version"
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
        labels: how many labels of a version have a counter of their own.
    """

    def __init__(self, models: Models, statistics: Statistics, load: Callable[[], Load], labels: int) -> None:
        self._models = models
        self._statistics = statistics
        self._load = load
        self._labels = labels

    def collect(self) -> Iterator[Any]:
        """Every metric with its values now."""
        families = {
            name: FAMILIES[one.kind](name, f"{one.says[0].upper()}{one.says[1:]}.", labels=one.labels)
            for name, one in METRICS.items()
        }
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
            said = (model.digest, model.provider.name, model.manifest.certificate is not None, model.batch_invariant)
            families["evalmode_model_info"].add_metric(
                (model.name, model.version, *(str(one).lower() if one in (True, False) else one for one in said)), 1
            )
        recent = {}
        unknown = self._statistics.refused.copy()  # what was refused before its model was known
        unknown[FAULT] += 0
        for version, counts in {**dict.fromkeys(manifests, Counts()), **self._statistics.copy()}.items():
            if version == ("", ""):
                unknown.update(counts.codes)
                continue
            _add_counts(families, version, counts, self._labels)
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


def _add_counts(families: dict[str, Any], version: tuple[str, str], counts: Counts, labels: int) -> None:
    """What was counted of one version, and of so many of its labels."""
    for code, count in {FAULT: 0, **counts.codes}.items():
        families["evalmode_requests_total"].add_metric((*version, *code), count)
    families["evalmode_inputs_total"].add_metric(version, counts.inputs)
    shown = Counter(dict(islice(counts.labels.items(), labels)))
    if len(counts.labels) > labels:
        shown[OTHERS] += sum(islice(counts.labels.values(), labels, None))
    for label, count in shown.items():
        printable = label.encode(errors="backslashreplace").decode()  # half a surrogate pair would end every page
        families["evalmode_predictions_total"].add_metric((*version, printable), count)
    for name, told in TIMES.items():
        durations = counts.durations.get(told, Durations())
        bounds = [*(bound / 1e6 for bound in BOUNDS_US), "+Inf"]
        buckets = list(zip(map(str, bounds), accumulate(durations.buckets), strict=True))
        families[name].add_metric(version, buckets, durations.ns / 1e9)
    sizes = {size: run.count for size, run in counts.runs.items()}
    buckets = [(str(bound), sum(n for size, n in sizes.items() if size <= bound)) for bound in BATCHES]
    total = sum(size * count for size, count in sizes.items())
    families["evalmode_batch_size"].add_metric(version, [*buckets, ("+Inf", sum(sizes.values()))], total)
