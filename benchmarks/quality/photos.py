"""Measure classifiers of photos: accuracy on test images that were read once, and the time from start to report.

Parts, each of which trains by ``evalmode train`` unless it is ``plain``:

- ``default``: no option; a run for each seed.
- ``head``: five outer folds with ``--fine-tune none``; the accuracy is pooled over all images.
- ``few``: 20 images of each label, drawn five times, with ``--fine-tune none``; all other images are the test images.
- ``compact``: from scratch, at 128x128; a run for each seed.
- ``plain``: a plain loop of fine-tuning of the whole network from the same weights, in the time of the part
  ``default``; a run for each seed.

Every finished run is a line of the result file, and is not repeated.

Example: ``python benchmarks/quality/photos.py trashnet/ --part default --out results/photos.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from evalmode.certification.metrics import wilson_interval
from evalmode.images.folders import find_images
from training.datasets import Dataset, ReadOptions, load_dataset
from training.evaluation import evaluate
from training.networks import NETWORKS, build_network, lay_out, scale_pixels
from training.views import make_views

Runs = Iterator[tuple[str, Callable[[Path], dict[str, Any]]]]

FOLDS = 5
FEW, DRAWS = 20, 5  # images of each label, and the number of draws
PLAIN_RATE, PLAIN_MOMENTUM, PLAIN_DECAY = 0.01, 0.9, 1e-4  # those of torchvision's references, for batches of 32
PLAIN_EPOCHS = 2  # which take about as long as the part "default"
BATCH = 32


def main() -> None:
    """Run the chosen parts, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of <label>/<photo>")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="result file, a line of JSON per run")
    parser.add_argument("--plot", type=Path, help="PNG of accuracy by time")
    arguments = parser.parse_args()
    for part in arguments.part or PARTS:
        for name, run in PARTS[part](arguments.data.resolve(), arguments.seeds):
            if name in {one["name"] for one in read(arguments.out)}:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = {"part": part, "name": name, "data": arguments.data.name, **run(Path(folder))}
            with arguments.out.open("a") as file:
                file.write(json.dumps({**found, "processor": read_processor()}) + "\n")
    summarise(read(arguments.out))
    if arguments.plot:
        draw(read(arguments.out), arguments.plot)


def read_processor() -> str:
    """Return the name of the processor."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # lecture is beside this folder
    from lecture import processor

    return processor()


def read(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a result file; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(data: Path, options: list[str], folder: Path) -> dict[str, Any]:
    """Train by the command, and return accuracy, the number of test images, and the seconds from start to report."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "evalmode", "train", str(data), "--out", str(folder / "run"), "--json", *options]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    return {
        "accuracy": found["test_accuracy"],
        "val_accuracy": found["exact_val_accuracy"],
        "images": found["data"]["images"]["test"],
        "seconds": round(time.perf_counter() - started, 1),
        "stages": {stage["stage"]: round(stage["seconds"], 1) for stage in found["stages"]},
    }


def run_default(data: Path, seeds: int) -> Runs:
    """Train without options but the seed."""
    for seed in range(seeds):
        yield f"default-{seed}", partial(train, data, ["--seed", str(seed)])


def run_compact(data: Path, seeds: int) -> Runs:
    """Train the compact network from scratch."""
    for seed in range(seeds):
        options = ["--network", "compact", "--image-size", "128x128", "--seed", str(seed)]
        yield f"compact-{seed}", partial(train, data, options)


def run_head(data: Path, seeds: int) -> Runs:
    """Train the head alone, with each fold as the test images."""
    parts = [np.arange(len(paths)) % FOLDS for paths in list_labels(data).values()]
    for fold in range(FOLDS):
        chosen = [part == fold for part in parts]
        yield f"head-fold-{fold}", partial(train_split, data, chosen)


def run_few(data: Path, seeds: int) -> Runs:
    """Train the head alone on a few images of each label, and test on all others."""
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        orders = [rng.permutation(len(paths)) for paths in list_labels(data).values()]
        yield f"few-{draw}", partial(train_split, data, [order >= FEW for order in orders])


def list_labels(data: Path) -> dict[str, list[Path]]:
    """List the photos of each label, in an order that does not follow their names' numbers."""
    rng = np.random.default_rng(0)
    found = {path.name: list(find_images(path).images) for path in sorted(data.iterdir()) if path.is_dir()}
    return {label: [paths[row] for row in rng.permutation(len(paths))] for label, paths in found.items()}


def train_split(data: Path, tested: list[npt.NDArray[np.bool_]], folder: Path) -> dict[str, Any]:
    """Train the head alone, with some images of each label as the test images.

    Args:
        data: Folder of <label>/<photo>.
        tested: For each label which of its images are test images, bool (N,).
        folder: An empty folder.
    """
    for (label, paths), marks in zip(list_labels(data).items(), tested, strict=True):
        for path, mark in zip(paths, marks.tolist(), strict=True):
            place = folder / "data" / ("test" if mark else "train") / label
            place.mkdir(parents=True, exist_ok=True)
            (place / path.name).symlink_to(path)
    return train(folder / "data", ["--fine-tune", "none"], folder)


def run_plain(data: Path, seeds: int) -> Runs:
    """Fine-tune the whole network as usual: batch norm in train mode, random crops, stochastic gradient descent."""
    for seed in range(seeds):
        yield f"plain-{seed}", partial(train_plainly, data, seed)


def train_plainly(data: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Train for ``PLAIN_EPOCHS`` epochs with a falling learning rate; the last epoch counts."""
    started = time.perf_counter()
    dataset = load_dataset(str(data), ReadOptions(image_size=(224, 224)), seed)
    torch.manual_seed(seed)
    name = "efficientnet-lite0"
    network = build_network(name, dataset.contract.shape, len(dataset.labels), 1.0, 0.2)
    NETWORKS[name].load_weights(network, name, None)
    lay_out(network)
    optimizer = torch.optim.SGD(network.parameters(), PLAIN_RATE, PLAIN_MOMENTUM, weight_decay=PLAIN_DECAY)
    steps = -(-len(dataset.train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PLAIN_EPOCHS * steps)
    for epoch in range(PLAIN_EPOCHS):
        nn.Module.train(network)
        for module in network.modules():
            module.training = True
        for rows in np.array_split(np.random.default_rng([seed, epoch]).permutation(len(dataset.train)), steps):
            views = make_views(dataset.train.images[rows], 2 + epoch, rows, True, seed)
            loss = functional.cross_entropy(
                network(scale_pixels(torch.from_numpy(views))), torch.from_numpy(dataset.train.targets[rows])
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return measure_plain(network, dataset, started)


def measure_plain(network: nn.Module, dataset: Dataset, started: float) -> dict[str, Any]:
    """Measure a network that ``train_plainly`` trained."""
    seconds = time.perf_counter() - started
    for module in network.modules():
        module.training = False
    return {
        "accuracy": evaluate(network, dataset.test)[0],
        "val_accuracy": evaluate(network, dataset.val)[0],
        "images": len(dataset.test),
        "seconds": round(seconds, 1),
        "epochs": PLAIN_EPOCHS,
    }


def summarise(runs: list[dict[str, Any]]) -> None:
    """Print a line for each part: mean accuracy, the accuracy pooled over all test images, and the seconds."""
    for part in dict.fromkeys(run["part"] for run in runs):
        found = [run for run in runs if run["part"] == part]
        images = sum(run["images"] for run in found)
        right = sum(round(run["accuracy"] * run["images"]) for run in found)
        low, high = wilson_interval(right, images)
        mean = np.mean([run["accuracy"] for run in found])
        seconds = [run["seconds"] for run in found]
        print(
            f"{part:8} {len(found)} runs: mean {mean:.4f}, pooled {right / images:.4f} ({low:.4f} to {high:.4f}, "
            f"{images:,} images), {np.median(seconds):.0f} s (at most {max(seconds):.0f})"
        )


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the accuracy of each part by its time, with the 95% interval of all its test images."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for part in dict.fromkeys(run["part"] for run in runs):
        found = [run for run in runs if run["part"] == part]
        images = sum(run["images"] for run in found)
        right = sum(round(run["accuracy"] * run["images"]) for run in found)
        low, high = wilson_interval(right, images)
        seconds = float(np.median([run["seconds"] for run in found]))
        bars = [[right / images - low], [high - right / images]]
        axes.errorbar([seconds], [right / images], bars, marker="o", capsize=4, label=f"{part}, {images:,} test images")
    axes.set(xscale="log", xlabel="seconds from start to report", ylabel="test accuracy", title=runs[0]["data"])
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


PARTS: dict[str, Callable[[Path, int], Runs]] = {
    "default": run_default,
    "head": run_head,
    "few": run_few,
    "compact": run_compact,
    "plain": run_plain,
}

if __name__ == "__main__":
    main()
