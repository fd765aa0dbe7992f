"""Writes the dashboard for Grafana, evalmode.json in this folder: ``python deploy/grafana/make_dashboard.py``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("evalmode.json")
WIDTH, HEIGHT, STAT_HEIGHT = 24, 8, 4  # of the grid of a dashboard, and of panels, in its units
SOURCE = {"type": "prometheus", "uid": "$source"}
SERVERS = 'job=~"$job", instance=~"$instance"'
MODELS = f'{SERVERS}, model=~"$model"'
RATE = "[$__rate_interval]"
OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "graphMode": "area"},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "table": {"showHeader": True},
    "heatmap": {
        "calculate": False,
        "yAxis": {"unit": "s"},
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Blues"},
    },
}


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard.

    Attributes:
        title: Its title.
        queries: The legend of each query, and the query in PromQL. A legend ``{{label}}`` shows the value of a label.
        text: What it shows, and what a bad value means.
        unit: The unit of Grafana, such as ``s``, ``bytes`` or ``percentunit``.
        kind: ``timeseries``, ``stat``, ``table`` or ``heatmap``.
        limit: The value from which on a stat is red; None: always green.
        stacked: Whether the series of a timeseries are shown on top of each other.
    """

    title: str
    queries: dict[str, str]
    text: str
    unit: str = "short"
    kind: str = "timeseries"
    limit: float | None = None
    stacked: bool = False


def rate(metric: str, matchers: str = MODELS) -> str:
    """Return the rate of a counter."""
    return f"rate({metric}{{{matchers}}}{RATE})"


def mean(metric: str) -> str:
    """Return the mean of a histogram over all answers."""
    return f"sum({rate(f'{metric}_sum')}) / sum({rate(f'{metric}_count')})"


def quantile(share: float, by: str = "") -> str:
    """Return a quantile of the time for a request."""
    labels = ", ".join(filter(None, (by, "le")))
    return f"histogram_quantile({share}, sum by ({labels}) ({rate('evalmode_request_seconds_bucket')}))"


REQUESTS = f'evalmode_requests_total{{{SERVERS}, model=~"$model|"}}'  # also those that name no known model
FAILED = REQUESTS.replace('"$model|"', '"$model|", code!="OK"')
ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": (
        Panel("Servers", {"": f"sum(evalmode_ready{{{SERVERS}}})"}, "Servers that answer requests.", kind="stat"),
        Panel("Requests", {"": f"sum(rate({REQUESTS}{RATE}))"}, "Requests of all models.", "reqps", "stat"),
        Panel(
            "Failed",
            {"": f"sum(rate({FAILED}{RATE})) / sum(rate({REQUESTS}{RATE}))"},
            "Share of the requests that were not answered. The panel Failures shows why.",
            "percentunit",
            "stat",
            0.01,
        ),
        Panel("p99", {"": quantile(0.99)}, "99% of the answers take at most this long.", "s", "stat", 0.1),
        Panel(
            "Versions that cannot be loaded",
            {"": f"sum(max by (model, version) (evalmode_model_load_failed{{{MODELS}}}))"},
            "Versions in the repository for which an older one answers, or none.",
            kind="stat",
            limit=1,
        ),
        Panel(
            "Models with drift",
            {"": f"sum(max by (model, version) (evalmode_input_drifted{{{MODELS}}}))"},
            "Models that receive other images than those of their training.",
            kind="stat",
            limit=1,
        ),
    ),
    "Requests": (
        Panel(
            "Requests by version",
            {"{{model}}/{{version}}": f"sum by (model, version) ({rate('evalmode_requests_total')})"},
            "Shows which version answers, during a change to another one.",
            "reqps",
            stacked=True,
        ),
        Panel(
            "Failures",
            {"{{code}} {{reason}}": f"sum by (code, reason) (rate({FAILED}{RATE}))"},
            "Requests that were not answered, by the reason that docs/reference/errors.md explains.",
            "reqps",
            stacked=True,
        ),
        Panel(
            "Inputs by predicted label",
            {"{{label}}": f"topk(10, sum by (label) ({rate('evalmode_predictions_total')}))"},
            "The ten labels that are predicted most often. A sudden change may mean that the images have changed.",
            stacked=True,
        ),
    ),
    "Time": (
        Panel(
            "Time of a request",
            {"p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99)},
            "Time in the server for an answered request.",
            "s",
        ),
        Panel(
            "Mean time by part",
            {part: mean(f"evalmode_{part}_seconds") for part in ("decode", "wait", "inference")},
            "Waiting means that all slots are in use: add servers.",
            "s",
            stacked=True,
        ),
        Panel(
            "p99 by model", {"{{model}}": quantile(0.99, "model")}, "99% of the answers take at most this long.", "s"
        ),
        Panel(
            "Distribution",
            {"{{le}}": f"sum by (le) (increase(evalmode_request_seconds_bucket{{{MODELS}}}{RATE}))"},
            "Number of answers by their time.",
            "s",
            "heatmap",
        ),
    ),
    "Load": (
        Panel(
            "Slots in use",
            {"{{instance}}": f"evalmode_slots_busy{{{SERVERS}}} / evalmode_slots{{{SERVERS}}}"},
            "Share of the slots that decode or run a network.",
            "percentunit",
        ),
        Panel(
            "Requests in flight",
            {
                "{{instance}} in flight": f"evalmode_requests_in_flight{{{SERVERS}}}",
                "{{instance}} waiting": f"evalmode_requests_waiting{{{SERVERS}}}",
            },
            "Requests that have arrived and are not answered, and those of them that wait for a slot.",
        ),
        Panel(
            "Inputs",
            {"{{model}}": f"sum by (model) ({rate('evalmode_inputs_total')})"},
            "Inputs a second in answered requests: a request may have several.",
            stacked=True,
        ),
        Panel("Inputs per run", {"mean": mean("evalmode_batch_size")}, "Mean number of inputs in a run of a network."),
    ),
    "Models": (
        Panel(
            "Loaded versions",
            {"": f"max by (model, version, digest, provider, certified) (evalmode_model_info{{{MODELS}}})"},
            "The files by which servers answer.",
            kind="table",
        ),
        Panel(
            "Servers by version",
            {"{{model}}/{{version}}": f"sum by (model, version) (evalmode_model_ready{{{MODELS}}})"},
            "Number of servers that have loaded a version, 0 for one that is in the repository only.",
        ),
        Panel(
            "Input drift",
            {
                "{{model}}/{{version}} {{moment}} {{channel}}": "topk(10, max by (model, version, moment, channel) "
                f"(abs(evalmode_input_drift{{{MODELS}}})))"
            },
            "Distance of recent images from those of the training, in standard errors: drift from 5 on.",
        ),
    ),
    "Processes": (
        Panel("Memory", {"{{instance}}": f"process_resident_memory_bytes{{{SERVERS}}}"}, "Resident memory.", "bytes"),
        Panel("CPU", {"{{instance}}": rate("process_cpu_seconds_total", SERVERS)}, "CPUs in use."),
        Panel("Open files", {"{{instance}}": f"process_open_fds{{{SERVERS}}}"}, "Open files and connections."),
        Panel(
            "Running for",
            {"{{instance}}": f"time() - process_start_time_seconds{{{SERVERS}}}"},
            "Time since the start of a server. It falls to 0 at a restart.",
            "s",
        ),
        Panel(
            "Workers",
            {"{{instance}} {{state}}": f"evalmode_workers{{{SERVERS}}}"},
            "Workers, configured and ready. No data if each server is one process.",
        ),
        Panel(
            "Restarts of workers",
            {"{{instance}}": f"increase(evalmode_worker_restarts_total{{{SERVERS}}}{RATE})"},
            "No data if each server is one process.",
        ),
        Panel(
            "Releases",
            {"{{release}}": f"count by (release) (evalmode_info{{{SERVERS}}})"},
            "Number of servers by the release of evalmode.",
        ),
    ),
}
VARIABLES = {
    "job": "label_values(evalmode_info, job)",
    "instance": 'label_values(evalmode_info{job=~"$job"}, instance)',
    "model": f"label_values(evalmode_model_ready{{{SERVERS}}}, model)",
}


def main() -> None:
    """Write the dashboard."""
    FILE.write_text(render())


def render() -> str:
    """Return the content of the file of the dashboard."""
    dashboard = {
        "title": "evalmode",
        "uid": "evalmode",
        "tags": ["evalmode"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [make_source(), *(make_variable(name, query) for name, query in VARIABLES.items())]},
        "annotations": {"list": []},
        "panels": list(place(ROWS)),
    }
    return json.dumps(dashboard, indent=2) + "\n"


def place(rows: Mapping[str, Sequence[Panel]]) -> Iterator[dict[str, Any]]:
    """Make the panels of rows, each with its place in the grid."""
    top, numbers = 0, count(1)
    for title, panels in rows.items():
        row = {"type": "row", "title": title, "collapsed": False, "panels": []}
        yield {"id": next(numbers), "gridPos": box(top, 0, WIDTH, 1), **row}
        top += 1
        height, columns = (STAT_HEIGHT, 6) if panels[0].kind == "stat" else (HEIGHT, 4)
        for first in range(0, len(panels), columns):
            line = panels[first : first + columns]
            width = WIDTH // len(line)
            for column, panel in enumerate(line):
                yield {"id": next(numbers), "gridPos": box(top, column * width, width, height), **make_panel(panel)}
            top += height


def box(top: int, left: int, width: int, height: int) -> dict[str, int]:
    """Return a place in the grid."""
    return {"x": left, "y": top, "w": width, "h": height}


def make_panel(panel: Panel) -> dict[str, Any]:
    """Make a panel, without its place."""
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": make_defaults(panel), "overrides": []},
        "options": OPTIONS[panel.kind],
        "targets": [
            make_target(panel.kind, reference, legend, query)
            for reference, (legend, query) in zip("ABC", panel.queries.items(), strict=False)
        ],
    }


def make_defaults(panel: Panel) -> dict[str, Any]:
    """Make the settings of the values of a panel."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults |= {"min": 0, "custom": {"fillOpacity": 20 if panel.stacked else 0, "stacking": stacking}}
    return defaults


def make_target(kind: str, reference: str, legend: str, query: str) -> dict[str, Any]:
    """Make a query of a panel."""
    form = {"table": "table", "heatmap": "heatmap"}.get(kind, "time_series")
    once = kind == "table"
    return {
        "refId": reference,
        "datasource": SOURCE,
        "expr": query,
        "legendFormat": legend or "__auto",
        "format": form,
        "instant": once,
        "range": not once,
    }


def make_source() -> dict[str, Any]:
    """Make the variable that chooses a Prometheus."""
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def make_variable(name: str, query: str) -> dict[str, Any]:
    """Make a variable that chooses values of a label."""
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # when the time range changes
        "sort": 1,  # by the alphabet
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    main()
