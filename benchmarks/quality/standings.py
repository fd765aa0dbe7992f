"""Compares the figures of benchmarks/quality/train.py: a summary, a table, a plot."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.record import describe_result

KERAS = "keras"
COLOURS = {"dense": "#6b7280", "reference": "#2a6fbb", "compact": "#d1495b", KERAS: "#c2700a"}
HEIGHT, WIDTH = 0.02, 0.3  # of a name in the plot: accuracy, and share of the longest time
SPREAD = ("test_accuracy", "mirrored_accuracy", "seconds", "export_seconds", "peak_bytes", "training_peak_bytes")


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute mean, range and median of each contestant's figures, and its seconds relative to Keras with the seed."""
    keras = {run["seed"]: run["seconds"] for run in runs if run["contestant"] == KERAS}
    summary: dict[str, Any] = {}
    for contestant in COLOURS:
        mine = [run for run in runs if run["contestant"] == contestant]
        if not mine:
            continue
        ratios = [run["seconds"] / keras[run["seed"]] for run in mine if run["seed"] in keras]
        summary[contestant] = {
            "runs": len(mine),
            **{name: describe([run[name] for run in mine]) for name in SPREAD if name in mine[0]},
            **({"seconds_of_keras": describe(ratios)} if ratios else {}),
            **{name: mine[0][name] for name in ("multiply_adds", "weights")},
        }
    return summary


def describe(values: list[float]) -> dict[str, float]:
    """Compute mean, minimum, maximum and median."""
    figures = {"mean": statistics.mean(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in {**figures, "median": statistics.median(values)}.items()}


def print_table(results: dict[str, Any]) -> None:
    """Print the summary: means, and the range in brackets if there is more than one run."""
    table = Table(box=box.SIMPLE_HEAD, caption=f"mean (minimum to maximum); {describe_result(results)}")
    table.add_column("contestant", style="bold", no_wrap=True)
    for name in (
        "runs",
        "test accuracy",
        "mirrored",
        "seconds",
        "of Keras'",
        "peak memory",
        "multiply-adds",
        "weights",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for contestant, figures in results["summary"].items():
        table.add_row(
            contestant,
            str(figures["runs"]),
            show_spread(figures.get("test_accuracy"), "{:.2f}%", 100),
            show_spread(figures.get("mirrored_accuracy"), "{:.2f}%", 100),
            show_spread(figures["seconds"], "{:.0f}"),
            show_spread(figures.get("seconds_of_keras"), "{:.2f}"),
            f"{figures['peak_bytes']['max'] / 1e6:,.0f} MB",
            f"{figures['multiply_adds'] / 1e6:.2f} M",
            f"{figures['weights']:,}",
        )
    Console(width=160).print(table)


def show_spread(figures: dict[str, float] | None, pattern: str, scale: float = 1) -> str:
    """Format ``84.61% (84.40% to 84.82%)``, without the brackets if all values are equal."""
    if figures is None:
        return "-"
    mean, least, greatest = (pattern.format(figures[name] * scale) for name in ("mean", "min", "max"))
    return mean if least == greatest else f"{mean} ({least.rstrip('%')} to {greatest.rstrip('%')})"


def draw_plot(results: dict[str, Any], path: Path) -> None:
    """Plot accuracy against seconds: one point per run, hollow for the accuracy of the mirrored artifact."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "axes.edgecolor": "#9aa0a6", "axes.labelcolor": "#3c4043"}):
        figure = Figure(figsize=(8, 5), dpi=200, layout="constrained")
        axes = figure.add_subplot()
        dress(axes, results)
        for contestant in results["summary"]:
            draw_contestant(axes, contestant, results)
        figure.savefig(path)


def draw_contestant(axes: Any, contestant: str, results: dict[str, Any]) -> None:
    """Draw the runs of a contestant with its name and its means."""
    colour, figures = COLOURS[contestant], results["summary"][contestant]
    runs = [run for run in results["runs"] if run["contestant"] == contestant]
    seconds, mirrored = [run["seconds"] for run in runs], "mirrored_accuracy" in figures
    mean = figures["test_accuracy"]["mean"]
    near = [run["seconds"] for run in results["runs"] if abs(run["test_accuracy"] - mean) < HEIGHT]
    latest = max(run["seconds"] for run in results["runs"])
    left = any(0 < other - max(seconds) < WIDTH * latest for other in near)  # points are where the name would be
    x, offset = (min(near), -9) if left else (max(seconds), 9)
    place = {"textcoords": "offset points", "va": "center", "ha": "right" if left else "left", "color": colour}
    axes.scatter(seconds, [100 * run["test_accuracy"] for run in runs], s=52, c=colour, edgecolors="white", zorder=3)
    y, drop = 100 * mean, 6 if mirrored else 0  # the mirrored mean is just above it
    axes.annotate(contestant, (x, y), xytext=(offset, 6 - drop), weight="bold", **place)
    text = f"{y:.1f}% in {figures['seconds']['mean']:.0f} s"
    axes.annotate(text, (x, y), xytext=(offset, -6 - drop), size=8.5, **place)
    if mirrored:
        axes.scatter(seconds, [100 * run["mirrored_accuracy"] for run in runs], s=40, c="white", edgecolors=colour)
        y = 100 * figures["mirrored_accuracy"]["mean"]
        axes.annotate(f"{y:.1f}% mirrored", (x, y), xytext=(offset, 3), size=8.5, **place)


def dress(axes: Any, results: dict[str, Any]) -> None:
    """Draw title, axes and grid."""
    axes.set_title("Test accuracy, and the seconds from images to artifact", loc="left", weight="bold", pad=22)
    text = f"{describe_result(results)}; one point per seed"
    axes.text(0, 1.025, text, transform=axes.transAxes, size=8.5, color="#5f6368")
    axes.set_xlabel("seconds from process start to artifact, decoding included")
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter("{x:.0f}%")
    axes.set_xlim(0, 1.24 * max(run["seconds"] for run in results["runs"]))
    axes.margins(y=0.12)
    axes.grid(color="#e8eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelcolor="#5f6368")
