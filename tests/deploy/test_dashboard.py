"""Every query of the Grafana dashboard finds data in a Prometheus that scrapes a real server with real requests."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import yaml

from deploy.grafana.make_dashboard import FILE, render
from evalmode.client import CallFailed, Client
from serving.services.metrics import METRICS
from tests.conftest import serving
from tests.deploy.monitoring import RULES, Prometheus, find_free_port, needs_prometheus, wait_for, watching
from tests.serving.services.test_metrics import publish_drawn

DASHBOARD = json.loads(FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
RULE_LIST = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
NAME = re.compile(r"\b(?:\w+:)?(?:evalmode|process)_[\w:]+|\bup\b")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a server of two workers with steady requests, of which half are invalid."""
    repository, port, stop = tmp_path_factory.mktemp("models"), find_free_port(), threading.Event()
    images = itertools.cycle(publish_drawn(repository))
    with ExitStack() as resources:
        server = resources.enter_context(serving(repository, "--workers", 2, "--metrics-port", port))
        client = resources.enter_context(Client(server.address))

        def send() -> None:
            while not stop.wait(0.001):
                client.predict_pixels(next(images))
                with suppress(CallFailed):
                    client.predict(b"no image")

        sending = threading.Thread(target=send)
        sending.start()
        resources.callback(sending.join)
        resources.callback(stop.set)
        folder = tmp_path_factory.mktemp("prometheus")
        yield resources.enter_context(watching(folder, f"127.0.0.1:{port}", RULES.read_text()))


def fill(query: str) -> str:
    """The query as Grafana sends it if all values of every variable are chosen."""
    query = query.replace("$__rate_interval", "10s")
    for name, variable in VARIABLES.items():
        query = query.replace(f"${name}", variable.get("allValue", ""))
    assert "$" not in query
    return query


@needs_prometheus
@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_query_finds_numbers(prometheus: Prometheus, title: str, query: str) -> None:
    wait_for(lambda: any(math.isfinite(float(one["value"][1])) for one in prometheus.query(fill(query))), lambda: title)


@needs_prometheus
@pytest.mark.parametrize("name", sorted(VARIABLES.keys() - {"source"}))
def test_a_variable_has_values(prometheus: Prometheus, name: str) -> None:
    query = re.fullmatch(r"label_values\((.*), (\w+)\)", VARIABLES[name]["query"]["query"])
    assert query
    wait_for(lambda: prometheus.get(f"label/{query[2]}/values", **{"match[]": fill(query[1])}))


@needs_prometheus
def test_every_legend_names_labels_that_the_series_have(prometheus: Prometheus) -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            series = prometheus.query(fill(target["expr"]))
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert all(wanted <= one["metric"].keys() for one in series), panel["title"]


@needs_prometheus
def test_every_metric_of_the_dashboard_and_the_rules_exists(prometheus: Prometheus) -> None:
    recorded = {rule["record"] for rule in RULE_LIST if "record" in rule}
    queries = [query for _, query in QUERIES] + [rule["expr"] for rule in RULE_LIST]
    names = {name for query in queries for name in NAME.findall(query)} - recorded

    def find_unknown() -> set[str]:
        return names - set(prometheus.get("label/__name__/values"))

    wait_for(lambda: not find_unknown(), find_unknown)


def test_every_metric_of_the_server_is_in_the_dashboard() -> None:
    shown = " ".join(query for _, query in QUERIES)
    assert [name for name in METRICS if name not in shown] == []


def test_the_dashboard_is_that_of_its_script() -> None:
    """If this fails, run ``python deploy/grafana/make_dashboard.py``."""
    assert FILE.read_text() == render()


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
