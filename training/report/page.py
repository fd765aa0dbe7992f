"""Renders ``report.html``: measures, draws, and writes the page into the run folder."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evalmode.certification.design.rendering import render_page
from evalmode.files import write_atomically
from training.datasets import Dataset
from training.errors import RunError
from training.evaluation import predict_logits
from training.networks import recognise_architecture
from training.report import charts, findings, pictures
from training.report.advice import Evidence, list_advice
from training.report.attention import describe_attention
from training.report.charts import MANY_LABELS, Axes, Line
from training.report.commands import list_commands, name_data
from training.report.doubts import describe_doubts
from training.report.learning import Rows, describe_layers, describe_training, doubt_validation, explain_loss
from training.report.spread import spread
from training.review import Review
from training.run import INITIAL, REPORT, Run
from training.statistics import list_moved
from training.temperature import choose_temperature

SHOWN_MISTAKES = 12
SHOWN_CONVOLUTIONS = 6
WORST, BEST = 20, 5  # rows of the table of labels, if there are more labels


def write_report(run: Run, network: nn.Module, dataset: Dataset) -> Path:
    """Write ``report.html`` into the run folder, as one file that refers to no others.

    Args:
        run: The run; its metrics and its review of the data are shown.
        network: The network with the best weights, on the CPU; it is left in eval mode.
        dataset: The data set of the run; its test images are classified.

    Returns:
        The path of the file.

    Raises:
        RunError: The metrics or the review cannot be read, or no epoch is complete.
    """
    rows = _read_metrics(run)
    initial = copy.deepcopy(network)
    run.load_weights(initial, INITIAL)
    moved = list_moved(initial.state_dict(), network.state_dict())
    review = Review.read(run.folder)
    facts: dict[str, Any] = {"run": run, "dataset": dataset, "data": name_data(run.config.data)}
    facts["place"] = partial(pictures.place_image, data=dataset.source)
    facts |= describe_training(rows, network, len(dataset.val)) | describe_layers(rows, moved)
    facts |= _describe_test(run, network, initial, dataset) | describe_doubts(review, dataset)
    facts |= _describe_next(run, dataset, facts["test"], Evidence(run.config, dataset, facts["test"], facts, review))
    path = run.folder / REPORT
    write_atomically(path, render_page("training.report", "page.html.j2", facts))
    return path


def _read_metrics(run: Run) -> Rows:
    """Read the lines of ``metrics.jsonl``.

    Raises:
        RunError: They cannot be read, or no epoch is complete.
    """
    rows = run.metrics.read()
    if not any("val_accuracy" in row or row.get("stages") for row in rows):
        raise RunError(
            f"no epoch of {run.folder} is complete, so there is nothing to report: evalmode train --resume continues it"
        )
    return rows


def _describe_test(run: Run, network: nn.Module, initial: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """Collect what the page shows of the test images."""
    logits = run.read_logits()
    val = logits["val"] if "val" in logits else predict_logits(network, dataset.val)
    temperature, reason = choose_temperature(val, dataset.val.targets)
    found = findings.examine(network, dataset.test, dataset.labels, logits.get("test"), temperature)
    correct, confidence = found.predictions.correct, found.predictions.confidence
    order = np.argsort(np.where(correct, -1, 1) * -confidence, kind="stable")  # most confident mistakes first
    mistakes = order[: int((~correct).sum())]
    sample = int(order[-1])  # the most confident correct prediction, if there is one
    maps = pictures.watch_convolutions(network, dataset.test.images[sample])
    classes, many = found.classes, len(dataset.labels) > MANY_LABELS
    return {
        "test": found,
        "temperature": temperature,
        "temperature_reason": reason,
        "shades": [] if many else charts.shade(found.matrix).tolist(),
        "confusion": charts.draw_confusion(found.matrix, dataset.labels) if many else None,
        "classes": classes if len(classes) <= WORST + BEST else classes[:WORST] + classes[-BEST:],
        "reliability": charts.draw_reliability(found.reliability, found.uncalibrated),
        "mistakes": [_show_image(dataset, found.predictions, index) for index in mistakes[:SHOWN_MISTAKES]],
        **describe_attention(network, dataset, found.predictions, mistakes),
        "shift_chart": _draw_shifts(found.shifts),
        "shifted": findings.count_shifted(dataset.test),
        "sample": _show_image(dataset, found.predictions, sample),
        "convolution_count": len(maps),
        "maps": [
            (name, maps[name], pictures.embed_maps(maps[name])) for name in spread(list(maps), SHOWN_CONVOLUTIONS)
        ],
        "filters": _compare_filters(network, initial, next(iter(maps), ""), dataset.contract.channels),
    }


def _describe_next(run: Run, dataset: Dataset, test: findings.Findings, evidence: Evidence) -> dict[str, Any]:
    """Collect what the page says about what to do next, the training loss, and the validation accuracy."""
    epochs = evidence.training["epochs"]
    return {
        "advice": list_advice(evidence),
        "to_type": list_commands(run, dataset, test.predictions),
        "loss_note": explain_loss(run.config.recipe, epochs) if epochs else "",
        "val_doubt": doubt_validation(evidence.training, len(dataset.val), test.interval),
    }


def _draw_shifts(shifts: list[findings.Shift]) -> charts.Chart:
    pixels, accuracy, unchanged = zip(*shifts, strict=True)
    lines = [Line("accuracy", "blue", accuracy), Line("same prediction as without a shift", "orange", unchanged, "--")]
    return charts.draw_lines("Shifted test images", Axes(pixels, "shift in pixels", y_percent=True), lines)


def _show_image(dataset: Dataset, predictions: findings.Predictions, index: int) -> dict[str, Any]:
    """Collect what the page shows of one test image."""
    test = dataset.test
    return {
        "picture": pictures.embed_photo(test.images[index]),
        "true": dataset.labels[test.targets[index]],
        "predicted": dataset.labels[predictions.predicted[index]],
        "probability": predictions.confidence[index],
        "path": pictures.name_image(test, index, "test"),
    }


def _compare_filters(network: nn.Module, initial: nn.Module, first: str, channels: int) -> list[dict[str, Any]]:
    """Collect filters of the image before and after training.

    Args:
        network: The trained network.
        initial: The network with its initial weights.
        first: The name of its first convolution; "" if it has none.
        channels: The channels of the images; filters with other channels are not filters of the image.
    """
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
