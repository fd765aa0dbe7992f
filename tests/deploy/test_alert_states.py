"""The alerts in states of a server that take long to bring about, evaluated by promtool on its metrics."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from evalmode.artifact.publishing import publish
from evalmode.artifact.tensors import INPUT, PROBABILITIES
from evalmode.errors import ImageUnreadable, MessageTooLarge
from evalmode.runtime.model import Model
from serving.engine.scheduler import Load
from serving.services.metrics import Metrics
from serving.services.models import Models
from serving.services.statistics import Statistics, take_figures
from tests.conftest import colour_artifact
from tests.deploy.monitoring import RULES, needs_prometheus
from tests.serving.conftest import refresh

pytestmark = needs_prometheus

MINUTES = 12  # duration of a state: longer than the "for" of any alert
UP = 'up{job="evalmode"}'

State = dict[str, float]


class Served:
    """A server's metrics, without a server."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        if not repository.exists():
            publish(repository, "colours", colour_artifact())
        self.models, self.statistics = Models.open(repository), Statistics()
        self._registry = CollectorRegistry()
        load = Load(1, 0, 0, 0)
        metrics = Metrics(lambda: take_figures(self.models, self.statistics, load), 1000, lambda: True)
        self._registry.register(metrics)

    @property
    def model(self) -> Model:
        return self.models.find("colours", "")

    def answer(self, count: int) -> None:
        """Count answers that took 2 ms each."""
        inputs, outputs = {INPUT: np.zeros((1, 4, 4, 3), np.uint8)}, {PROBABILITIES: np.array([[1.0, 0.0, 0.0]])}
        for _ in range(count):
            self.statistics.count_answer(self.model, inputs, outputs, 0, 0, 2000)

    def refuse(self, count: int, error: Exception) -> None:
        for _ in range(count):
            self.statistics.count_refusal(self.model, 0.001, error)

    def publish(self, artifact: bytes) -> None:
        publish(self.repository, "colours", artifact)
        refresh(self.models)

    def now(self) -> State:
        """The samples that Prometheus would scrape now."""
        state = {UP: 1.0}
        for family in text_string_to_metric_families(generate_latest(self._registry).decode()):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in {"job": "evalmode", **sample.labels}.items())
                state[f"{sample.name}{{{labels}}}"] = sample.value
        return state


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path / "models")


def check(folder: Path, states: list[State], firing: set[str], minutes: int = MINUTES) -> None:
    """Check with promtool which alerts fire.

    Args:
        folder: For the files of promtool.
        states: The samples of each minute, in order, each for ``MINUTES`` minutes, the last for ``minutes``.
        firing: Names of exactly the alerts that fire at the end.
        minutes: Duration of the last state, in minutes.
    """
    lengths = [MINUTES] * (len(states) - 1) + [minutes]
    shutil.copy(RULES, folder / "rules.yaml")
    series = [
        {
            "series": name,
            "values": " ".join(
                str(state.get(name, "_")) for state, length in zip(states, lengths, strict=True) for _ in range(length)
            ),
        }
        for name in sorted({name for state in states for name in state})
    ]
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)]
    query = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{sum(lengths) - 1}m",
        "exp_samples": expected,
    }
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [query]}
    (folder / "test.yaml").write_text(
        json.dumps({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]})
    )
    command = ["promtool", "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_fires_for_a_healthy_server(served: Served, tmp_path: Path) -> None:
    """With more versions than stay loaded, valid and invalid requests, and changing labels."""
    states = []
    for _ in range(3):
        served.answer(200)
        served.refuse(20, ImageUnreadable("no image"))
        served.refuse(20, MessageTooLarge("too large"))
        states.append(served.now())
        served.publish(colour_artifact())
    check(tmp_path, states, set())


class TestModelNotServed:
    def test_ends_when_a_newer_version_is_loaded(self, served: Served, tmp_path: Path) -> None:
        served.publish(b"no artifact")
        before = served.now()
        served.publish(colour_artifact())
        check(tmp_path, [before, served.now()], set())

    def test_ends_when_the_model_is_unloaded(self, served: Served, tmp_path: Path) -> None:
        served.publish(b"no artifact")
        served.models.unload("colours")
        check(tmp_path, [served.now()], set())

    def test_fires_if_the_file_of_the_served_version_is_corrupted(self, served: Served, tmp_path: Path) -> None:
        (served.repository / "colours" / "1" / "model.onnx").write_bytes(b"corrupted")
        refresh(served.models)
        check(tmp_path, [served.now()], {"ModelNotServed"})


@pytest.mark.parametrize("wanted", [1, 20])
def test_faults_of_the_server_fires_from_the_first_fault_on(served: Served, tmp_path: Path, wanted: int) -> None:
    served.answer(1000)
    before = served.now()
    served.refuse(wanted, ZeroDivisionError())
    check(tmp_path, [before, served.now()], {"FaultsOfTheServer"}, minutes=3)


def test_faults_of_the_server_fires_for_faults_without_a_model(served: Served, tmp_path: Path) -> None:
    before = served.now()
    served.statistics.count_refusal(None, 0.001, ZeroDivisionError())
    check(tmp_path, [before, served.now()], {"FaultsOfTheServer"}, minutes=3)
