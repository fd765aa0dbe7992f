"""What the report shows of the training: stages, epochs, and batch norm layers."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from torch import nn

from evalmode.certification.design.steps import count
from evalmode.certification.metrics import wilson_interval
from training.recipe import Recipe
from training.report import charts
from training.report.charts import Axes, Line
from training.report.spread import spread

WIDE = 0.10  # of a 95% confidence interval: two trainings that differ by less may differ by chance
Rows = list[dict[str, Any]]  # of metrics.jsonl


def describe_training(rows: Rows, network: nn.Module, val_images: int) -> dict[str, Any]:
    """Collect what the page shows of stages and epochs.

    Args:
        rows: The lines of ``metrics.jsonl``: one for each epoch, and one for the result.
        network: The trained network.
        val_images: The number of validation images.
    """
    epochs = [row for row in rows if "val_accuracy" in row]
    best = _find_best(rows[-1], epochs)
    stages = [
        stage | {"interval": _find_interval(stage["val_accuracy"], val_images)} for stage in rows[-1].get("stages", ())
    ]
    val_accuracy = best["val_accuracy"] if best else rows[-1]["exact_val_accuracy"]
    val_interval = _find_interval(val_accuracy, val_images)
    return {
        "epochs": epochs,
        "best": best,
        "val_accuracy": val_accuracy,
        "val_interval": val_interval,
        "overfits": bool(best and val_interval and best["train_accuracy"] > val_interval[1]),
        "finished": datetime.fromisoformat(rows[-1]["finished"]) if rows[-1].get("finished") else None,
        "exact_accuracy": rows[-1].get("exact_val_accuracy"),
        "corrections": rows[-1].get("corrections", []),
        "stages": stages,
        "seconds": sum(read(stages or epochs, "seconds")),
        "weights": sum(weights.numel() for weights in network.parameters()),
        "learning": _draw_learning(epochs, best),
    }


def doubt_validation(training: dict[str, Any], images: int, test_interval: tuple[float, float]) -> str:
    """Say what the validation accuracy is worth, if its interval is wide or it lies above that of the test images.

    Args:
        training: What ``describe_training`` returns.
        images: The number of validation images.
        test_interval: The 95% confidence interval of the test accuracy.

    Returns:
        A sentence; "" if the validation accuracy can be read as it is.
    """
    accuracy, (low, high) = training["val_accuracy"], training["val_interval"]
    if high - low <= WIDE and accuracy <= test_interval[1]:
        return ""
    chosen = "The epoch was" if training["best"] else "These weights were"
    return f"{chosen} chosen by these {count(images, 'validation image')}, so their accuracy tends to be too high."


def _find_best(result: dict[str, Any], epochs: Rows) -> dict[str, Any] | None:
    """Find the epoch whose weights the run keeps; None if they are those of a stage without epochs."""
    if result.get("best_epoch") == 0 or not epochs:
        return None
    return max(epochs, key=lambda row: (row["val_accuracy"], -row["val_loss"]))  # as training chooses it


def _find_interval(accuracy: float | None, images: int) -> tuple[float, float] | None:
    return None if accuracy is None else wilson_interval(round(accuracy * images), images)


def _draw_learning(epochs: Rows, best: dict[str, Any] | None) -> list[charts.Chart]:
    """Draw accuracy and loss by epoch, with a mark at the epoch whose weights are kept."""
    if not epochs:
        return []
    x, marked = read(epochs, "epoch"), best["epoch"] if best else None

    def draw(title: str, train: list[float], val: list[float], percent: bool = False) -> charts.Chart:
        lines = [Line("training", "blue", train), Line("validation", "orange", val)]
        return charts.draw_lines(title, Axes(x, y_percent=percent, marked=marked), lines, band=(train, val))

    return [
        draw("Accuracy", read(epochs, "train_accuracy"), read(epochs, "val_accuracy"), percent=True),
        draw("Loss (cross-entropy)", _read_losses(epochs), read(epochs, "val_loss")),
    ]


def _read_losses(epochs: Rows) -> list[float]:
    """Read the training losses without label smoothing; if older epochs lack them, those that training minimised."""
    return read(epochs, "cross_entropy" if _has_cross_entropy(epochs) else "loss")


def _has_cross_entropy(epochs: Rows) -> bool:
    return all(row.get("cross_entropy") is not None for row in epochs)


def explain_loss(recipe: Recipe, epochs: Rows) -> str:
    """Explain in a sentence why the training loss can be above the validation loss.

    Args:
        recipe: How the network was trained.
        epochs: The lines of ``metrics.jsonl`` of the epochs, at least one.
    """
    harder = ["while the weights still change"]
    if recipe.dropout:
        harder.append("with dropout")
    if recipe.mirror or recipe.shift or recipe.views > 1:
        harder.append("on augmented images")
    extra = [
        words
        for used, words in [
            (recipe.label_smoothing, f"label smoothing of {recipe.label_smoothing:g}"),
            (recipe.balance, "label weights"),
        ]
        if used
    ]
    sentence = f"The training loss can be above the validation loss, because it is measured {_join(harder)}"
    if not extra:
        return f"{sentence}."
    if _has_cross_entropy(epochs):
        return f"{sentence}. It is drawn without {_join(extra)}, which only training uses."
    return f"{sentence}, and because it includes {_join(extra)}, which the validation loss does not."


def _join(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def describe_layers(rows: Rows, moved: Collection[str]) -> dict[str, Any]:
    """Collect what the page shows of the batch norm layers that training changed; of many, only some are shown.

    Args:
        rows: The lines of ``metrics.jsonl``.
        moved: Names of the layers whose moving statistics training changed.
    """
    layers: dict[str, Rows] = {}
    for row in rows:
        for seen in row.get("layers", ()):
            layers.setdefault(seen["layer"], []).append({"epoch": row["epoch"], **seen})
    trained = [layers[name] for name in layers if name in moved]
    shown = spread(trained, len(charts.DEPTHS))

    def draw_gap(title: str, field: str) -> charts.Chart:
        lines = [
            Line(one[0]["layer"], depth, read(one, field)) for one, depth in zip(shown, charts.DEPTHS, strict=False)
        ]
        return charts.draw_lines(title, Axes(read(shown[0], "epoch")), lines)

    return {
        "layer_count": len(trained),
        "kept_layer_count": len(layers) - len(trained),
        "layers": [one[-1] for one in shown],
        "gaps": [draw_gap("Gap of means", "mean_gap"), draw_gap("Gap of standard deviations", "std_gap")]
        if shown
        else [],
        "moving": [_draw_moving(one) for one in shown],
        "drift": [_draw_drift(one) for one in shown],
    }


def _draw_moving(rows: Rows) -> charts.Chart:
    lines = [Line("batch", "blue", read(rows, "batch_std")), Line("moving", "orange", read(rows, "moving_std"), "--")]
    return charts.draw_lines(rows[0]["layer"], Axes(read(rows, "epoch"), size=charts.SMALL), lines)


def _draw_drift(rows: Rows) -> charts.Chart:
    lines, band = [Line("median", "blue", read(rows, "median"))], (read(rows, "low"), read(rows, "high"))
    return charts.draw_lines(rows[0]["layer"], Axes(read(rows, "epoch"), size=charts.SMALL), lines, band=band)


def read(rows: Rows, field: str) -> list[Any]:
    """Return one field of every row.

    Args:
        rows: Lines of ``metrics.jsonl``, or other objects with the field.
        field: Name of the field.
    """
    return [row[field] for row in rows]
