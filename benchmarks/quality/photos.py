r"""Measure classifiers of photos: accuracy on test images that were read once, and the time from start to report.

Parts, each of which trains by ``evalmode train`` unless it is ``plain``:

- ``default``: no option; a run for each seed.
- ``head``: five outer folds with ``--fine-tune none``; the accuracy is pooled over all images.
- ``few``: 20 images of each label, drawn five times, with ``--fine-tune none``; all other images are the test images.
- ``compact``: from scratch, at ``--compact-size``; a run for each seed.
- ``plain``: a plain loop of fine-tuning of the whole network from the same weights, in the time of the part
  ``default``; a run for each seed.

Runs that the result file contains already are not repeated. ``--subset N`` draws N images, the same number of
each label, from all splits of the data; the draw is always the same. Thumbnails need ``--network efficientnet-lite0``,
because ``compact`` is the default for them.

Examples::

    python -m benchmarks.quality.photos trashnet/ --part default --out FILE
    python -m benchmarks.quality.photos cifar10/ --subset 5000 --network efficientnet-lite0 --compact-size 32x32 \
        --part default --part plain --part compact --seeds 1 --out FILE
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from benchmarks.quality.photo_standings import draw, summarise
from benchmarks.record import add_out, read_unfinished, write_result
from evalmode.images.folders import find_images
from training.datasets import Dataset, ReadOptions, load_dataset
from training.evaluation import evaluate
from training.networks import NETWORKS, build_network, lay_out, scale_pixels
from training.views import make_views

Runs = Iterator[tuple[str, Callable[[Path], dict[str, Any]]]]


@dataclass(frozen=True)
class Job:
    """What the parts train on, and how.

    Attributes:
        data: Folder of <label>/<photo>.
        seeds: The number of runs of the parts with a run for each seed.
        pretrained: Options of the parts that train a pretrained network.
        compact_size: The image size of the part ``compact``, HxW.
    """

    data: Path
    seeds: int
    pretrained: list[str]
    compact_size: str


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
    add_out(parser)
    parser.add_argument("--plot", type=Path, help="PNG of accuracy by time")
    parser.add_argument("--network", help="for all parts but compact and plain; default: the one for these images")
    parser.add_argument("--compact-size", default="128x128", help="image size of the part compact")
    parser.add_argument("--subset", type=int, help="number of images to draw from the data; default: all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data.absolute()  # a link keeps its name
        if arguments.subset:
            data = draw_subset(data, arguments.subset, Path(folder) / f"{data.name}-{arguments.subset}")
        pretrained = ["--network", arguments.network] if arguments.network else []
        job = Job(data, arguments.seeds, pretrained, arguments.compact_size)
        runs: list[dict[str, Any]] = read_unfinished(arguments).get("runs", [])
        for part in arguments.part or PARTS:
            for found in run_part(part, job, {(one["data"], one["name"]) for one in runs}):
                runs.append(found)
                write_result(arguments, {"runs": runs})
    for name in dict.fromkeys(run["data"] for run in runs):
        summarise(name, [run for run in runs if run["data"] == name])
    if arguments.plot:
        draw(runs, arguments.plot)


def run_part(part: str, job: Job, done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Run what is missing of a part.

    Args:
        part: Its name.
        job: What to train on.
        done: The data and the names of the runs that are not repeated.

    Yields:
        The figures of each run.
    """
    for name, run in PARTS[part](job):
        if (job.data.name, name) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            before = measure_cpu_s()
            found = {"part": part, "name": name, "data": job.data.name, **run(Path(folder))}
        found["cpu_seconds"] = round(measure_cpu_s() - before, 1)  # with evaluation; other processes hardly change it
        yield found | {"load_average": round(os.getloadavg()[1], 1), "cores": os.cpu_count()}


def measure_cpu_s() -> float:
    """Return the CPU seconds of this process and of the processes that it has waited for."""
    return sum(os.times()[:4])


def draw_subset(data: Path, count: int, folder: Path) -> Path:
    """Draw images, the same number of each label, and link them into a folder of <label>/<photo>.

    Args:
        data: Folder of <label>/<photo>, or of <split>/<label>/<photo>.
        count: The number of images to draw.
        folder: The folder to create.
    """
    images = find_images(data).images
    by_label = {
        label: [path for path in images if path.parent.name == label] for label in {p.parent.name for p in images}
    }
    rng = np.random.default_rng(0)
    for label, paths in sorted(by_label.items()):
        place = folder / label
        place.mkdir(parents=True)
        for row in rng.choice(len(paths), count // len(by_label), replace=False).tolist():
            (place / "-".join(paths[row].relative_to(data).parts)).symlink_to(paths[row])
    return folder


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


def run_default(job: Job) -> Runs:
    """Train without options but the seed."""
    for seed in range(job.seeds):
        yield f"default-{seed}", partial(train, job.data, [*job.pretrained, "--seed", str(seed)])


def run_compact(job: Job) -> Runs:
    """Train the compact network from scratch."""
    for seed in range(job.seeds):
        options = ["--network", "compact", "--image-size", job.compact_size, "--seed", str(seed)]
        yield f"compact-{seed}", partial(train, job.data, options)


def run_head(job: Job) -> Runs:
    """Train the head alone, with each fold as the test images."""
    parts = [np.arange(len(paths)) % FOLDS for paths in list_labels(job.data).values()]
    for fold in range(FOLDS):
        chosen = [part == fold for part in parts]
        yield f"head-fold-{fold}", partial(train_split, job, chosen)


def run_few(job: Job) -> Runs:
    """Train the head alone on a few images of each label, and test on all others."""
    for number in range(DRAWS):
        rng = np.random.default_rng(number)
        orders = [rng.permutation(len(paths)) for paths in list_labels(job.data).values()]
        yield f"few-{number}", partial(train_split, job, [order >= FEW for order in orders])


def list_labels(data: Path) -> dict[str, list[Path]]:
    """List the photos of each label, in an order that does not follow their names' numbers."""
    rng = np.random.default_rng(0)
    found = {path.name: list(find_images(path).images) for path in sorted(data.iterdir()) if path.is_dir()}
    return {label: [paths[row] for row in rng.permutation(len(paths))] for label, paths in found.items()}


def train_split(job: Job, tested: list[npt.NDArray[np.bool_]], folder: Path) -> dict[str, Any]:
    """Train the head alone, with some images of each label as the test images.

    Args:
        job: What to train on.
        tested: For each label which of its images are test images, bool (N,).
        folder: An empty folder.
    """
    for (label, paths), marks in zip(list_labels(job.data).items(), tested, strict=True):
        for path, mark in zip(paths, marks.tolist(), strict=True):
            place = folder / "data" / ("test" if mark else "train") / label
            place.mkdir(parents=True, exist_ok=True)
            (place / path.name).symlink_to(path)
    return train(folder / "data", [*job.pretrained, "--fine-tune", "none"], folder)


def run_plain(job: Job) -> Runs:
    """Fine-tune the whole network as usual: batch norm in train mode, random crops, stochastic gradient descent."""
    for seed in range(job.seeds):
        yield f"plain-{seed}", partial(train_plainly, job.data, seed)


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


PARTS: dict[str, Callable[[Job], Runs]] = {
    "default": run_default,
    "head": run_head,
    "few": run_few,
    "compact": run_compact,
    "plain": run_plain,
}

if __name__ == "__main__":
    main()
