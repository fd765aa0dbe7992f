"""Metrics of figures that no server of this process has counted."""

from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from evalmode.artifact.image_statistics import MOMENTS
from serving.engine.scheduler import Load
from serving.services.drift import RecentImage
from serving.services.figures import Counts, Figures, ModelFacts, Version, VersionState, Workers
from serving.services.metrics import MIN_IMAGES, Metrics

ONE: Version = ("network", "1")
RECORDED = {name: {"mean": [0.0] * 3, "std": [1.0] * 3} for name in MOMENTS}
FACTS = ModelFacts("sha256:0", "CPU", True, False, RECORDED)
Samples = dict[str, dict[tuple[str, ...], float]]


def make_figures(counts: Counts | None = None, workers: Workers | None = None) -> Figures:
    """The figures of a server with one model."""
    states = {ONE: VersionState(ready=True, failed=False)}
    return Figures(Load(2, 1, 3, 4), states, {ONE: FACTS}, {ONE: counts or Counts()}, Counts().codes, 0, workers)


def render(figures: Figures, labels: int = 1000) -> Samples:
    """The samples of the metrics, by name and by the values of their labels."""
    registry = CollectorRegistry()
    registry.register(Metrics(lambda: figures, labels, lambda: True))
    found: Samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def draw_images(count: int, began_ns: int = 0, channels: int = 3, mean: float = 0.0) -> list[RecentImage]:
    """Images of known moments, one a nanosecond."""
    moments = np.full((len(MOMENTS), channels), mean, np.float32)
    return [RecentImage.from_moments(began_ns + number, moments) for number in range(count)]


def test_only_a_server_of_several_workers_has_metrics_of_workers() -> None:
    assert not {"evalmode_workers", "evalmode_worker_restarts_total"} & render(make_figures()).keys()
    found = render(make_figures(workers=Workers(configured=4, ready=3, restarts=7)))
    assert found["evalmode_workers"] == {("configured",): 4, ("ready",): 3}
    assert found["evalmode_worker_restarts_total"] == {(): 7}


def test_images_with_other_channels_than_the_training_images_are_no_drift() -> None:
    """The file of a version may be replaced by one that takes other images."""
    counts = Counts()
    counts.recent.extend([*draw_images(5, channels=1, mean=99.0), *draw_images(MIN_IMAGES - 1)])
    assert "evalmode_input_drifted" not in render(make_figures(counts))
    counts.recent.extend(draw_images(1))
    assert set(render(make_figures(counts))["evalmode_input_drift"].values()) == {0.0}
