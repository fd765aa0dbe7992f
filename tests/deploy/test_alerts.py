"""The alerts of deploy/prometheus: tested by promtool, and fired by a real server that Prometheus scrapes."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from benchmarks.worker_processes import find_workers
from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.publishing import publish
from evalmode.artifact.sealing import seal
from evalmode.client import CallFailed, Client
from evalmode.images.pixels import PixelContract
from tests.conftest import COLOURS, Server, colour_artifact, colour_graph, encode, plain, serving
from tests.deploy.monitoring import ROOT, RULES, Prometheus, find_free_port, needs_prometheus, wait_for, watching
from tests.serving.services.test_metrics import publish_drawn

pytestmark = needs_prometheus

TESTS = RULES.with_name("rules.test.yaml")
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule]
NAMES = sorted(rule["alert"] for rule in ALERTS)
WINDOWS = {"5m": "3s", "15m": "6s"}  # so that alerts fire and end within seconds
SLOW_STEPS = 1000  # more than the limit of Slow on one thread
FAULTY = 200  # a pixel of at least this value is a fault of the network "faulty"
BLUE, WHITE = encode(plain("blue")), encode(plain("white"))


def promtool(*arguments: object) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    promtool("check", "rules", RULES)
    promtool("check", "config", "--syntax-only", ROOT / "docker" / "monitoring" / "prometheus.yaml")
    promtool("test", "rules", TESTS)


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_every_alert_has_a_severity_a_duration_and_text(rule: dict) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["for"] != "0s"
    assert rule["annotations"].keys() == {"summary", "description"}


def test_every_alert_fires_and_does_not_fire_in_the_tests_of_promtool() -> None:
    cases = [case for one in yaml.safe_load(TESTS.read_text())["tests"] for case in one.get("alert_rule_test", ())]
    assert sorted({case["alertname"] for case in cases if case["exp_alerts"]}) == NAMES
    assert sorted({case["alertname"] for case in cases if not case["exp_alerts"]}) == NAMES


def test_every_alert_is_fired_by_a_server() -> None:
    tests = " ".join(name for name in globals() if name.startswith("test_"))
    assert [name for name in NAMES if re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() not in tests] == []


def shorten(rules: str, windows: dict[str, str]) -> str:
    """The same rules, whose alerts fire at once and by what happened in the last seconds."""
    for window, short in windows.items():
        rules = rules.replace(f"[{window}]", f"[{short}]")
    return re.sub(r"for: \w+", "for: 0s", rules)


@dataclass
class Site:
    """A Prometheus, and a server of two workers that it scrapes.

    Attributes:
        repository: The models of the server: colours, slow and faulty.
        drawn: Images like the training images of colours.
    """

    repository: Path
    drawn: np.ndarray
    prometheus: Prometheus
    port: int
    server: Server | None = None
    resources: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        """Start the server, unless it runs."""
        if self.server is None:
            options = ("--workers", 2, "--poll", 0.1, "--max-queue", 2, "--one-thread", "--allow-uncertified")
            running = serving(self.repository, *options, "--metrics-port", self.port)
            self.server = self.resources.enter_context(running)

    def expect(self, *names: str) -> None:
        """Wait until exactly these alerts fire."""
        wait_for(lambda: self.prometheus.list_firing() == set(names), lambda: self.prometheus.list_firing())

    @property
    def client(self) -> Client:
        assert self.server is not None
        return Client(self.server.address)


def make_faulty() -> bytes:
    """The colour artifact, but its network fails for pixels of at least ``FAULTY``: their index is out of range."""
    graph = colour_graph()
    graph.graph.node[2].output[0] = "valid_logits"
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros(FAULTY, np.float32), "zeros"))
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["values"], ["largest"], keepdims=0),
        helper.make_node("Gather", ["zeros", "largest"], ["nothing"]),
        helper.make_node("Add", ["valid_logits", "nothing"], ["logits"]),
    ]
    kept = [*graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend([*kept[:3], *nodes, *kept[3:]])
    onnx.checker.check_model(graph)
    return seal(graph, ClassifierManifest(COLOURS, PixelContract(4, 4, 3), {}))


@pytest.fixture(scope="module")
def unstarted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose server does not run yet."""
    repository, port = tmp_path_factory.mktemp("models"), find_free_port()
    drawn = publish_drawn(repository)
    publish(repository, "slow", colour_artifact(slow_steps=SLOW_STEPS))
    publish(repository, "faulty", make_faulty())
    folder = tmp_path_factory.mktemp("prometheus")
    with watching(folder, f"127.0.0.1:{port}", shorten(RULES.read_text(), WINDOWS)) as prometheus:
        one = Site(repository, drawn, prometheus, port)
        with one.resources:
            yield one


@pytest.fixture
def site(unstarted: Site) -> Site:
    """A site whose server runs, and for which no alert fires."""
    unstarted.start()
    unstarted.expect()
    return unstarted


@contextmanager
def repeating(act: Callable[[], object], threads: int) -> Iterator[None]:
    """Repeat a request in threads, whether it is answered or refused, until the block ends."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                act()
            except CallFailed:
                stop.wait(0.01)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for one in running:
        one.start()
    try:
        yield
    finally:
        stop.set()
        for one in running:
            one.join()


def test_server_down_and_no_server_fire_until_a_server_answers(unstarted: Site) -> None:
    unstarted.expect("NoServer", "ServerDown")
    unstarted.start()
    unstarted.expect()


def test_no_alert_fires_for_valid_and_invalid_requests(site: Site) -> None:
    images = itertools.cycle(site.drawn)

    def ask() -> None:
        client.predict_pixels(next(images), model="colours")
        client.predict(b"no image", model="colours")

    with site.client as client, repeating(ask, threads=1):
        wait_for(lambda: site.prometheus.query('job_model:evalmode_requests:rate5m{model="colours"} > 0'))
        site.expect()


def test_model_not_served_fires_until_a_valid_version_is_published(site: Site) -> None:
    publish(site.repository, "colours", b"no artifact")
    site.expect("ModelNotServed")
    publish_drawn(site.repository)
    site.expect()


def test_model_unavailable_fires_until_the_first_valid_version_is_published(site: Site) -> None:
    publish(site.repository, "new", b"no artifact")
    site.expect("ModelNotServed", "ModelUnavailable")
    publish(site.repository, "new", colour_artifact())
    site.expect()


def test_faults_of_the_server_fires_until_some_time_after_the_last_fault(site: Site) -> None:
    with site.client as client:
        assert client.predict(encode(plain("black")), model="faulty")
        with pytest.raises(CallFailed, match="INTERNAL"):
            client.predict(WHITE, model="faulty")
    site.expect("FaultsOfTheServer")
    site.expect()


def test_slow_and_overload_fire_while_a_slow_network_has_many_requests(site: Site) -> None:
    with site.client as client:

        def ask() -> None:
            client.predict(BLUE, model="slow")

        with repeating(ask, threads=1):
            site.expect("Slow")
        with repeating(ask, threads=12):
            site.expect("Slow", "Overload")
    site.expect()


def test_input_drifted_fires_until_the_images_are_as_before(site: Site) -> None:
    with site.client as client:
        for images, alerts in ((site.drawn + 40, ["InputDrifted"]), (site.drawn, [])):
            for image in images.astype(np.uint8):
                client.predict_pixels(image, model="colours")
            site.expect(*alerts)


def test_not_ready_and_workers_missing_and_worker_restarts_fire_while_workers_are_killed(site: Site) -> None:
    seen = set[str]()
    assert site.server
    while not seen >= {"NotReady", "WorkersMissing", "WorkerRestarts"}:
        for worker in find_workers(site.server.process.pid):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        seen |= site.prometheus.list_firing()
    site.expect()


@pytest.mark.slow
def test_restart_loop_fires_after_three_restarts_until_a_server_stays_up(colours: Path, tmp_path: Path) -> None:
    port, begun = find_free_port(), time.monotonic()
    with serving(colours, "--metrics-port", port):
        window = f"{15 + 6 * math.ceil(time.monotonic() - begun)}s"  # in which a server starts four times
    with watching(tmp_path, f"127.0.0.1:{port}", shorten(RULES.read_text(), {"15m": window})) as prometheus:

        def find_starts() -> set[str]:
            samples = prometheus.query('process_start_time_seconds{job="evalmode"}')
            return {sample["value"][1] for sample in samples}

        seen = set[str]()
        while "RestartLoop" not in prometheus.list_firing():
            with serving(colours, "--metrics-port", port):  # it is killed at the end of the block
                wait_for(lambda: find_starts() - seen)
                seen.update(find_starts())
        assert len(seen) >= 4
        with serving(colours, "--metrics-port", port):
            wait_for(lambda: "RestartLoop" not in prometheus.list_firing())
