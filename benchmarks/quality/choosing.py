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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.record import add_out, write_result
from training.callbacks import Callbacks
from training.checkpoint import Epoch
from training.datasets import Dataset, ReadOptions, Split, load_dataset
from training.evaluation import evaluate
from training.loop import prepare_network, train
from training.ranks import ALONE
from training.recipe import Recipe, choose_recipe
from training.run import Run
from training.run_config import RunConfig
from training.statistics import list_moved, recompute_statistics, sample_statistics


def main() -> None:
    """Train, measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    add_out(parser)
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
    write_result(arguments, results)


def take(split: Split, count: int) -> Split:
    """Select ``count`` images, evenly spaced."""
    step = max(1, len(split) // count)
    return Split(split.images[::step][:count], split.targets[::step][:count])


def time_sampling(network: nn.Module, split: Split, moved: list[str], recipe: Recipe) -> float:
    """Measure the CPU seconds that an epoch spends on the sample of statistics."""
    started = time.process_time()
    with sample_statistics(network, split, moved, recipe.batch_size, ALONE):
        return time.process_time() - started


def measure(dataset: Dataset, config: RunConfig) -> dict[str, Any]:
    """Train once. Return figures for each epoch, and for the epoch that each way of choosing selects."""
    epochs: list[dict[str, float]] = []
    begun: list[float] = []

    torch.manual_seed(config.recipe.seed)
    network = prepare_network(config.build_network(), dataset.train)
    initial = {name: value.clone() for name, value in network.state_dict().items()}

    def look(epoch: Epoch) -> None:
        seconds = time.process_time() - begun[-1]
        exact, sampled = copy.deepcopy(network), copy.deepcopy(network)
        sampling_s = time_sampling(sampled, dataset.train, list_moved(initial, network.state_dict()), config.recipe)
        recompute_statistics(exact, dataset.train)
        moving, exactly = evaluate(copy.deepcopy(network), dataset.val)[0], evaluate(exact, dataset.val)[0]
        figures = {"moving": moving, "sampled": epoch.val_accuracy, "exact": exactly}
        epochs.append({"epoch": epoch.epoch, "seconds": seconds, "sampling_s": sampling_s, **figures})
        print(epochs[-1], flush=True)
        begun.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config)
        begun.append(time.process_time())
        train(run, network, dataset.train, dataset.val, Callbacks(on_epoch=look))
    by = {way: max(epochs, key=lambda epoch: epoch[way]) for way in ("moving", "sampled", "exact")}
    return {
        "images": {"train": len(dataset.train), "val": len(dataset.val), "shape": config.shape},
        "network": config.recipe.network,
        "epochs": epochs,
        "chosen": {
            "share_of_time": sum(epoch["sampling_s"] for epoch in epochs) / sum(epoch["seconds"] for epoch in epochs),
            **{f"exact_if_by_{way}": epoch["exact"] for way, epoch in by.items()},
        },
    }


if __name__ == "__main__":
    main()
