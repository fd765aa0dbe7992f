"""The alerts of docs/operating.md, evaluated by promtool on the metrics of a server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from evalmode.artifact.publishing import publish
from evalmode.artifact.tensors import INPUT, PROBABILITIES
from evalmode.errors import ImageUnreadable, MessageTooLarge, QueueFull
from evalmode.runtime.model import Model
from serving.engine.scheduler import Load
from serving.services.drift import WINDOW
from serving.services.metrics import Metrics
from serving.services.models import Models
from serving.services.statistics import Statistics, take_figures
from tests.conftest import colour_artifact
from tests.serving.conftest import refresh
from tests.serving.services.test_metrics import publish_drawn

pytestmark = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: Debian's package prometheus has it")

DOCUMENT = Path(__file__).parents[3] / "docs" / "operating.md"
MINUTES = 12  # duration of a state: longer than the "for" of any alert
UP = 'up{job="evalmode"}'
ALERTS = ("FaultsOfTheServer", "InputDrifted", "ModelNotServed", "Overload", "ServerDown", "Slow")

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
        self._registry.register(Metrics(lambda: take_figures(self.models, self.statistics, load), labels=1000))

    @property
    def model(self) -> Model:
        return self.models.find("colours", "")

    def answer(self, count: int, ms: float = 2.0) -> None:
        """Count answers that took ``ms`` milliseconds each."""
        inputs, outputs = {INPUT: np.zeros((1, 4, 4, 3), np.uint8)}, {PROBABILITIES: np.array([[1.0, 0.0, 0.0]])}
        for _ in range(count):
            self.statistics.count_answer(self.model, inputs, outputs, 0, 0, round(ms * 1000))

    def refuse(self, count: int, error: Exception) -> None:
        for _ in range(count):
            self.statistics.count_refusal(self.model, 0.001, error)

    def publish(self, artifact: bytes, name: str = "colours") -> None:
        publish(self.repository, name, artifact)
        refresh(self.models)

    def now(self) -> State:
        """The samples that Prometheus would scrape now."""
        state = {UP: 1.0}
        for family in text_string_to_metric_families(generate_latest(self._registry).decode()):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                state[f"{sample.name}{{{labels}}}"] = sample.value
        return state


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path / "models")


def test_all_alerts_of_the_document_are_tested() -> None:
    assert sorted(re.findall(r"- alert: (\w+)", DOCUMENT.read_text())) == list(ALERTS)


def check(folder: Path, states: list[State], firing: set[str], minutes: int = MINUTES) -> None:
    """Check with promtool which alerts fire.

    Args:
        folder: For the files of promtool.
        states: The samples of each minute, in order, each for ``MINUTES`` minutes, the last for ``minutes``.
        firing: Names of exactly the alerts that fire at the end.
        minutes: Duration of the last state, in minutes.
    """
    lengths = [MINUTES] * (len(states) - 1) + [minutes]
    (rules,) = re.findall(r"```yaml\n(groups:.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (folder / "rules.yaml").write_text(rules)
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
    @pytest.mark.parametrize("name", ["colours", "other"])
    def test_fires_if_the_newest_version_or_every_version_cannot_be_loaded(
        self, served: Served, tmp_path: Path, name: str
    ) -> None:
        before = served.now()
        served.publish(b"no artifact", name)
        check(tmp_path, [before, served.now()], {"ModelNotServed"})

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


def test_overload_fires_if_requests_are_refused_with_queue_full(served: Served, tmp_path: Path) -> None:
    served.answer(1000)
    served.refuse(1, QueueFull("full"))
    before = served.now()
    served.answer(1000)
    served.refuse(20, QueueFull("full"))
    check(tmp_path, [before, served.now()], {"Overload"}, minutes=3)


def test_slow_fires_if_two_percent_take_longer_than_100_ms(served: Served, tmp_path: Path) -> None:
    served.answer(1000)
    before = served.now()
    served.answer(980)
    served.answer(20, ms=400.0)
    check(tmp_path, [before, served.now()], {"Slow"}, minutes=3)


@pytest.mark.parametrize(("change", "firing"), [(0, set()), (40, {"InputDrifted"})])
def test_input_drifted_fires_for_changed_images_only(tmp_path: Path, change: int, firing: set[str]) -> None:
    drawn = publish_drawn(tmp_path / "models")
    served = Served(tmp_path / "models")
    outputs = {PROBABILITIES: np.tile([1.0, 0.0, 0.0], (WINDOW, 1))}
    drifting = served.models.find("colours", "1")
    served.statistics.count_answer(drifting, {INPUT: (drawn + change).astype(np.uint8)}, outputs, 0, 0, 2000)
    check(tmp_path, [served.now()], firing)


def test_server_down_fires_if_the_server_does_not_answer(served: Served, tmp_path: Path) -> None:
    check(tmp_path, [served.now(), {UP: 0.0}], {"ServerDown"})
