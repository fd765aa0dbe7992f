"""Compares the figures of benchmarks/quality/photos.py: a summary and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evalmode.certification.metrics import wilson_interval

MAX_LOAD = 3  # processes for each core, on the average; beyond that the seconds of a run say nothing
TICKS = (10, 30, 60, 120, 300, 600, 1200)
NAMES = {
    "default": "pretrained, fine-tuned",
    "head": "pretrained, --fine-tune none",
    "few": "the same, 20 images a label",
    "compact": "compact, from scratch",
    "plain": "plain loop of fine-tuning",
}


def summarise(data: str, runs: list[dict[str, Any]]) -> None:
    """Print a line for each part: mean accuracy, the accuracy pooled over all test images, and the seconds."""
    print(data)
    for part in dict.fromkeys(run["part"] for run in runs):
        found = [run for run in runs if run["part"] == part]
        images, accuracy, (low, high) = pool(found)
        mean = np.mean([run["accuracy"] for run in found])
        seconds = [estimate_seconds(run) for run in found]
        print(
            f"{part:8} {len(found)} runs: mean {mean:.4f}, pooled {accuracy:.4f} ({low:.4f} to {high:.4f}, "
            f"{images:,} images), {np.median(seconds):.0f} s (at most {max(seconds):.0f})"
        )


def estimate_seconds(run: dict[str, Any]) -> float:
    """Return the seconds of a run from start to report; with much other work beside it, the least that they would be.

    That is its CPU time divided by the number of cores.
    """
    is_busy = run.get("load_average", 0) > MAX_LOAD * run.get("cores", 1)
    return float(run["cpu_seconds"] / run["cores"] if is_busy else run["seconds"])


def pool(runs: list[dict[str, Any]]) -> tuple[int, float, tuple[float, float]]:
    """Return the number of all test images of some runs, the accuracy over all of them, and its 95% interval."""
    images = sum(run["images"] for run in runs)
    right = sum(round(run["accuracy"] * run["images"]) for run in runs)
    return images, right / images, wilson_interval(right, images)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the accuracy of each part by its time, with the 95% interval of all its test images, for each data set."""
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(run["data"] for run in runs))
    figure, panels = plt.subplots(1, len(names), figsize=(6 * len(names), 4), layout="constrained", squeeze=False)
    for name, axes in zip(names, panels[0], strict=True):
        for part in NAMES:
            found = [run for run in runs if (run["data"], run["part"]) == (name, part)]
            if not found:
                continue
            images, accuracy, (low, high) = pool(found)
            seconds = float(np.median([estimate_seconds(run) for run in found]))
            bars = [[accuracy - low], [high - accuracy]]
            label = f"{NAMES[part]} ({images:,} test images)"
            colour = f"C{list(NAMES).index(part)}"  # the same in every panel
            axes.errorbar([seconds], [accuracy], bars, marker="o", capsize=4, color=colour, label=label)
        axes.set(xscale="log", xlabel="seconds from start to report, 2 cores", ylabel="test accuracy", title=name)
        axes.set_xticks(TICKS, map(str, TICKS))
        axes.set_xticks([], minor=True)
        axes.set_xlim(TICKS[0], TICKS[-1])
        axes.margins(y=0.1)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=120)
