"""Renders ``report.html``: measures, draws, and writes the page into the run folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor, nn

from evalmode.files import write_atomically
from training.datasets import Dataset
from training.errors import RunError
from training.networks import recognise_architecture
from training.report import charts, findings, pictures
from training.report.charts import Axes, Line
from training.run import INITIAL, Run

SHOWN_MISTAKES = 12
SHOWN_CONVOLUTIONS = 6
WORST, BEST = 20, 5  # rows of the table of labels, if there are more labels
Rows = list[dict[str, Any]]  # of metrics.jsonl
T = TypeVar("T")


def write_report(run: Run, network: nn.Module, dataset: Dataset) -> Path:
    """Write ``report.html`` into the run folder, as one file that refers to no others.

    Args:
        run: The run; its metrics are shown.
        network: The network with the best weights; it is left in eval mode.
        dataset: The data set of the run; its test images are classified.

    Returns:
        The path of the file.

    Raises:
        RunError: The metrics cannot be read, or no epoch is complete.
    """
    rows = _read_metrics(run)
    facts = {"run": run, "dataset": dataset}
    facts |= _describe_training(rows, network) | _describe_layers(rows) | _describe_test(run, network, dataset)
    page = Environment(loader=PackageLoader("training.report", ""), autoescape=True, undefined=StrictUndefined)
    path = run.folder / "report.html"
    write_atomically(path, page.get_template("page.html.j2").render(facts))
    return path


def _read_metrics(run: Run) -> Rows:
    """Read the lines of ``metrics.jsonl``.

    Raises:
        RunError: They cannot be read, or no epoch is complete.
    """
    path = run.folder / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        complete = any("val_accuracy" in row for row in rows)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not complete:
        raise RunError(
            f"no epoch of {run.folder} is complete, so there is nothing to report: evalmode train --resume continues it"
        )
    return rows


def _describe_training(rows: Rows, network: nn.Module) -> dict[str, Any]:
    """Collect what the page shows of the epochs."""
    epochs = [row for row in rows if "val_accuracy" in row]
    x = _read(epochs, "epoch")

    def draw(title: str, train: str, val: str, percent: bool = False) -> charts.Chart:
        both = _read(epochs, train), _read(epochs, val)
        lines = [Line("training", "blue", both[0]), Line("validation", "orange", both[1])]
        return charts.draw_lines(title, Axes(x, y_percent=percent), lines, band=both)

    return {
        "epochs": epochs,
        "best": max(epochs, key=lambda row: (row["val_accuracy"], -row["val_loss"])),  # as training chooses it
        "exact_accuracy": rows[-1].get("exact_val_accuracy"),
        "corrections": rows[-1].get("corrections", []),
        "seconds": sum(_read(epochs, "seconds")),
        "weights": sum(weights.numel() for weights in network.parameters()),
        "learning": [
            draw("Accuracy", "train_accuracy", "val_accuracy", percent=True),
            draw("Loss", "loss", "val_loss"),
        ],
    }


def _describe_layers(rows: Rows) -> dict[str, Any]:
    """Collect what the page shows of batch norm layers; of many layers, only some are shown."""
    layers: dict[str, Rows] = {}
    for row in rows:
        for seen in row.get("layers", ()):
            layers.setdefault(seen["layer"], []).append({"epoch": row["epoch"], **seen})
    shown = _spread(list(layers.values()), len(charts.DEPTHS))

    def draw_gap(title: str, field: str) -> charts.Chart:
        lines = [
            Line(one[0]["layer"], depth, _read(one, field)) for one, depth in zip(shown, charts.DEPTHS, strict=False)
        ]
        return charts.draw_lines(title, Axes(_read(shown[0], "epoch")), lines)

    return {
        "layer_count": len(layers),
        "layers": [one[-1] for one in shown],
        "gaps": [draw_gap("Gap of means", "mean_gap"), draw_gap("Gap of standard deviations", "std_gap")]
        if shown
        else [],
        "moving": [_draw_moving(one) for one in shown],
        "drift": [_draw_drift(one) for one in shown],
    }


def _draw_moving(rows: Rows) -> charts.Chart:
    lines = [Line("batch", "blue", _read(rows, "batch_std")), Line("moving", "orange", _read(rows, "moving_std"), "--")]
    return charts.draw_lines(rows[0]["layer"], Axes(_read(rows, "epoch"), size=charts.SMALL), lines)


def _draw_drift(rows: Rows) -> charts.Chart:
    lines, band = [Line("median", "blue", _read(rows, "median"))], (_read(rows, "low"), _read(rows, "high"))
    return charts.draw_lines(rows[0]["layer"], Axes(_read(rows, "epoch"), size=charts.SMALL), lines, band=band)


def _read(rows: Rows, field: str) -> list[Any]:
    return [row[field] for row in rows]


def _describe_test(run: Run, network: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """Collect what the page shows of the test images."""
    found = findings.examine(network, dataset.test, dataset.labels)
    correct, confidence = found.predictions.correct, found.predictions.confidence
    order = np.argsort(np.where(correct, -1, 1) * -confidence, kind="stable")  # most confident mistakes first
    sample = int(order[-1])  # the most confident correct prediction, if there is one
    maps = pictures.watch_convolutions(network, dataset.test.images[sample])
    classes = found.classes
    return {
        "test": found,
        "confusion": charts.draw_confusion(found.matrix, dataset.labels),
        "classes": classes if len(classes) <= WORST + BEST else classes[:WORST] + classes[-BEST:],
        "reliability": charts.draw_reliability(found.reliability),
        "mistakes": [
            _show_image(dataset, found.predictions, index) for index in order[:SHOWN_MISTAKES] if not correct[index]
        ],
        "shift_chart": _draw_shifts(found.shifts),
        "sample": _show_image(dataset, found.predictions, sample),
        "convolution_count": len(maps),
        "maps": [
            (name, maps[name], pictures.embed_maps(maps[name])) for name in _spread(list(maps), SHOWN_CONVOLUTIONS)
        ],
        "filters": _compare_filters(run, network, next(iter(maps), ""), dataset.contract.channels),
    }


def _draw_shifts(shifts: list[findings.Shift]) -> charts.Chart:
    pixels, accuracy, unchanged = zip(*shifts, strict=True)
    lines = [Line("accuracy", "blue", accuracy), Line("same prediction as without a shift", "orange", unchanged, "--")]
    return charts.draw_lines("Shifted test images", Axes(pixels, "shift in pixels", y_percent=True), lines)


def _show_image(dataset: Dataset, predictions: findings.Predictions, index: int) -> dict[str, Any]:
    """Collect what the page shows of one test image."""
    test = dataset.test
    return {
        "picture": pictures.embed_image(test.images[index]),
        "true": dataset.labels[test.targets[index]],
        "predicted": dataset.labels[predictions.predicted[index]],
        "probability": predictions.confidence[index],
        "path": test.paths[index] if test.paths else Path(f"test image {index}"),
    }


def _compare_filters(run: Run, network: nn.Module, first: str, channels: int) -> list[dict[str, Any]]:
    """Collect filters of the image before and after training.

    Args:
        run: The run; it has the initial weights.
        network: The trained network.
        first: The name of its first convolution; "" if it has none.
        channels: The channels of the images; filters with other channels are not filters of the image.
    """
    initial = copy.deepcopy(network)
    run.load_weights(initial, INITIAL)
    before, after = _list_filters(initial, first), _list_filters(network, first)
    return [
        {
            "layer": layer,
            "count": len(trained),
            "frozen": torch.equal(before[layer], trained),
            "pairs": list(zip(pictures.embed_filters(before[layer]), pictures.embed_filters(trained), strict=True)),
        }
        for layer, trained in after.items()
        if trained.shape[1] == channels
    ]


def _list_filters(network: nn.Module, first: str) -> dict[str, Tensor]:
    """Return the filters of the first convolution, and those that the architecture adds, by caption."""
    weights = getattr(network.get_submodule(first), "weight", None) if first else None
    own = {first: weights} if isinstance(weights, Tensor) else {}
    return own | recognise_architecture(network).list_filters(network)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Choose at most this many items, evenly spaced, including the first and the last."""
    return [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
