"""The cost and the gain of choosing the best epoch by the exported statistics of batch norm.

    python -m benchmarks.quality.choosing DATA --out FILE [--image-size HxW] [--network NAME] [--epochs N]

Trains once. For each epoch it records the CPU time of the sample of statistics and of the whole epoch, and validation
with the moving averages, with the sample, and with the exact statistics of all training images, which are exported.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import training.loop
from training.callbacks import Callbacks
from training.checkpoint import Epoch
from training.datasets import Dataset, ReadOptions, Split, load_dataset
from training.evaluation import evaluate
from training.recipe import choose_recipe
from training.run import Run
from training.run_config import RunConfig
from training.statistics import recompute_statistics, sample_statistics


def main() -> None:
    """Train, measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--image-size")
    parser.add_argument("--network", default="compact")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    size = arguments.image_size and tuple(map(int, arguments.image_size.split("x")))
    dataset = load_dataset(arguments.data, ReadOptions(size), arguments.seed)
    if arguments.train_images:
        dataset = replace(dataset, train=take(dataset.train, arguments.train_images))
    recipe = choose_recipe(arguments.network, dataset, seed=arguments.seed, epochs=arguments.epochs)
    results = measure(dataset, RunConfig.of(dataset, ReadOptions(size or None), recipe))
    print(json.dumps(results["chosen"], indent=1))
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def take(split: Split, count: int) -> Split:
    """Select ``count`` images, evenly spaced."""
    step = max(1, len(split) // count)
    return Split(split.images[::step][:count], split.targets[::step][:count])


def measure(dataset: Dataset, config: RunConfig) -> dict[str, Any]:
    """Train once. Return figures for each epoch, and for the epoch that each way of choosing selects."""
    sampling: list[float] = []
    epochs: list[dict[str, float]] = []
    begun: list[float] = []

    @contextmanager
    def timed(*arguments: Any) -> Iterator[None]:
        started = time.process_time()
        with sample_statistics(*arguments):
            sampling.append(time.process_time() - started)
            yield

    torch.manual_seed(config.recipe.seed)
    network = training.loop.prepare_network(config.build_network(), dataset.train)

    def look(epoch: Epoch) -> None:
        seconds = time.process_time() - begun[-1]
        exact = copy.deepcopy(network)
        recompute_statistics(exact, dataset.train)
        moving, exactly = evaluate(copy.deepcopy(network), dataset.val)[0], evaluate(exact, dataset.val)[0]
        figures = {"moving": moving, "sampled": epoch.val_accuracy, "exact": exactly}
        epochs.append({"epoch": epoch.epoch, "seconds": seconds, "sampling_s": sampling[-1], **figures})
        print(epochs[-1], flush=True)
        begun.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder, patch.object(training.loop, "sample_statistics", timed):
        run = Run.create(Path(folder) / "run", config)
        begun.append(time.process_time())
        training.loop.train(run, network, dataset.train, dataset.val, Callbacks(on_epoch=look))
    by = {way: max(epochs, key=lambda epoch: epoch[way]) for way in ("moving", "sampled", "exact")}
    return {
        "images": {"train": len(dataset.train), "val": len(dataset.val), "shape": config.shape},
        "network": config.recipe.network,
        "epochs": epochs,
        "chosen": {
            "share_of_time": sum(sampling) / sum(epoch["seconds"] for epoch in epochs),
            **{f"exact_if_by_{way}": epoch["exact"] for way, epoch in by.items()},
        },
    }


if __name__ == "__main__":
    main()
