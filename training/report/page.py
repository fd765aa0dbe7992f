"""The page: what was found, drawn and written into the run folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from serving.files import write_atomically
from serving.proof.figures import wilson_interval
from training.datasets import Dataset
from training.errors import RunError
from training.networks.compact import Compact
from training.report import charts, findings, pictures
from training.run import Run

SHOWN_MISTAKES = 12
WORST, BEST = 20, 5  # labels in the table, where there are more
Rows = list[dict[str, Any]]  # of metrics.jsonl
T = TypeVar("T")


def write_report(run: Run, network: nn.Module, dataset: Dataset) -> Path:
    """Write ``report.html`` into the run folder, whole or not at all: one file that needs no network.

    Args:
        run: its metrics tell how the training went.
        network: with the best weights; left in eval mode.
        dataset: what it was trained on; the test images are asked about again.

    Raises:
        RunError: its metrics cannot be read, or no epoch has ended.
    """
    rows = _read_metrics(run)
    facts = {"run": run, "dataset": dataset, "warnings": dataset.warnings}
    facts |= _tell_training(rows, network) | _tell_layers(rows) | _tell_answers(run, network, dataset)
    page = Environment(loader=PackageLoader("training.report", ""), autoescape=True, undefined=StrictUndefined)
    path = run.folder / "report.html"
    write_atomically(path, page.get_template("page.html.j2").render(facts))
    return path


def _read_metrics(run: Run) -> Rows:
    path = run.folder / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        ended = any("val_accuracy" in row for row in rows)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not ended:
        raise RunError(
            f"no epoch of {run.folder} has ended, there is nothing to report: evalmode train --resume goes on"
        )
    return rows


def _tell_training(rows: Rows, network: nn.Module) -> dict[str, Any]:
    epochs = [row for row in rows if "val_accuracy" in row]
    x = [row["epoch"] for row in epochs]

    def draw(title: str, train: str, val: str, share: bool = False) -> charts.Chart:
        both = [row[train] for row in epochs], [row[val] for row in epochs]
        lines = [("training", "blue", both[0], "-"), ("validation", "orange", both[1], "-")]
        return charts.draw_lines(title, x, lines, band=both, share=share)

    return {
        "epochs": epochs,
        "best": max(epochs, key=lambda row: (row["val_accuracy"], -row["val_loss"])),  # as training chooses
        "exact_accuracy": rows[-1].get("exact_val_accuracy"),
        "corrections": rows[-1].get("corrections", []),
        "seconds": sum(row["seconds"] for row in epochs),
        "weights": sum(weights.numel() for weights in network.parameters()),
        "learning": [draw("Accuracy", "train_accuracy", "val_accuracy", share=True), draw("Loss", "loss", "val_loss")],
    }


def _tell_layers(rows: Rows) -> dict[str, Any]:
    """Batch norm over the epochs, of some layers if there are many."""
    layers: dict[str, Rows] = {}
    for row in rows:
        for seen in row.get("layers", ()):
            layers.setdefault(seen["layer"], []).append({"epoch": row["epoch"], **seen})
    shown = _spread(list(layers.values()), len(charts.DEPTHS))

    def draw_gap(title: str, field: str) -> charts.Chart:
        lines = [
            (one[0]["layer"], depth, _read(one, field), "-") for one, depth in zip(shown, charts.DEPTHS, strict=False)
        ]
        return charts.draw_lines(title, _read(shown[0], "epoch"), lines)

    return {
        "layer_count": len(layers),
        "layers": [one[-1] for one in shown],
        "gaps": [draw_gap("Gap of means", "mean_gap"), draw_gap("Gap of spreads", "std_gap")] if shown else [],
        "moving": [_draw_moving(one) for one in shown],
        "drift": [_draw_drift(one) for one in shown],
    }


def _draw_moving(rows: Rows) -> charts.Chart:
    lines = [("batch", "blue", _read(rows, "batch_std"), "-"), ("moving", "orange", _read(rows, "moving_std"), "--")]
    return charts.draw_lines(rows[0]["layer"], _read(rows, "epoch"), lines, size=charts.SMALL)


def _draw_drift(rows: Rows) -> charts.Chart:
    lines, band = [("median", "blue", _read(rows, "median"), "-")], (_read(rows, "low"), _read(rows, "high"))
    return charts.draw_lines(rows[0]["layer"], _read(rows, "epoch"), lines, band=band, size=charts.SMALL)


def _read(rows: Rows, field: str) -> list[Any]:
    return [row[field] for row in rows]


def _tell_answers(run: Run, network: nn.Module, dataset: Dataset) -> dict[str, Any]:
    targets, labels = dataset.test.targets, dataset.labels
    answers = findings.answer(network, dataset.test)
    matrix = confusion_matrix(targets, answers.predicted, labels=range(len(labels)))
    classes = findings.score_classes(targets, answers.predicted, labels)
    confidence, right, images, error = findings.calibrate(answers)
    pixels, accuracy, unchanged = zip(*findings.try_shifts(network, dataset.test), strict=True)
    lines = [("right", "blue", accuracy, "-"), ("same label as unshifted", "orange", unchanged, "--")]
    order = np.argsort(np.where(answers.right, -1, 1) * -answers.confidence, kind="stable")  # surest mistakes first

    def show(index: int) -> dict[str, Any]:
        true, predicted = labels[targets[index]], labels[answers.predicted[index]]
        picture = pictures.embed_image(dataset.test.images[index])
        path = dataset.test.paths[index] if dataset.test.paths else Path(f"test image {index}")
        return {
            "picture": picture,
            "true": true,
            "predicted": predicted,
            "probability": answers.confidence[index],
            "path": path,
        }

    sample = int(order[-1])  # the surest right answer, if there is one
    maps = pictures.watch_convolutions(network, dataset.test.images[sample])
    return {
        "accuracy": answers.right.mean(),
        "interval": wilson_interval(int(answers.right.sum()), len(targets)),
        "confusion": charts.draw_confusion(matrix, labels),
        "confusions": findings.find_confusions(matrix, labels, 10),
        "classes": classes if len(classes) <= WORST + BEST else classes[:WORST] + classes[-BEST:],
        "class_count": len(classes),
        "calibration_error": error,
        "reliability": charts.draw_calibration(confidence, right, images),
        "mistakes": [show(index) for index in order[:SHOWN_MISTAKES] if not answers.right[index]],
        "shifts": accuracy,
        "shift_chart": charts.draw_lines("Test images", pixels, lines, axis="pixels", share=True),
        "sample": show(sample),
        "convolution_count": len(maps),
        "maps": [(name, maps[name], pictures.embed_maps(maps[name])) for name in _spread(list(maps), 6)],
        "filters": _compare_filters(run, network, next(iter(maps), ""), dataset.contract.channels),
    }


def _compare_filters(run: Run, network: nn.Module, name: str, channels: int) -> list[dict[str, Any]]:
    """Filters of the image before and after training: the first convolution's, and those that whitening hides."""
    initial = copy.deepcopy(network)
    run.load_weights(initial, "initial")
    layers = [(name, *(getattr(one.get_submodule(name), "weight", None) for one in (initial, network)))]
    if isinstance(network, Compact) and isinstance(initial, Compact):
        layers.append((f"{network.first_learned}, seen through {name}", initial.see_filters(), network.see_filters()))
    return [
        {
            "layer": layer,
            "count": len(after),
            "frozen": torch.equal(before, after),
            "pairs": list(zip(pictures.embed_filters(before), pictures.embed_filters(after), strict=True)),
        }
        for layer, before, after in layers
        if name and isinstance(before, Tensor) and isinstance(after, Tensor) and after.shape[1] == channels
    ]


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most so many, evenly spread, the first and the last among them."""
    return [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
