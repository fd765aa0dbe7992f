"""Measures each part of the compact network and its recipe on validation, by removing or adding one at a time.

    python -m benchmarks.quality.ladder DATA --out FILE

Every variant trains with the same seeds, on one thread, several at once. Accuracy does not depend on time, so the
machine may be busy. The test images are not used. Differences to ``compact`` are paired by seed. Runs that the output
file already contains are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import training.batches
import training.loop
import training.optimizers
from evalmode.files import write_atomically
from training.datasets import Dataset, Split, load_dataset
from training.evaluation import evaluate
from training.loop import prepare_network, train
from training.networks import compact
from training.networks.compact import Block, Compact
from training.onnx_export import Mirrored
from training.recipe import Recipe, choose_recipe
from training.run import Run
from training.run_config import RunConfig

TRAIN_IMAGES = 45_000
Change = Callable[[], AbstractContextManager[Any]]


def use_sgd() -> AbstractContextManager[Any]:
    """Train all weights by SGD with a peak learning rate of 0.4, the only one that was tried."""

    def make(network: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
        learned = [weights for weights in network.parameters() if weights.requires_grad]
        sgd = torch.optim.SGD(learned, 0.4, momentum=0.9, nesterov=True, weight_decay=5e-4)
        sgd.param_groups[0]["peak_lr"] = 0.4
        return [sgd]

    return patch.object(training.loop, "make_optimizers", make)


def learn_first_layer() -> AbstractContextManager[Any]:
    """Initialize the first convolution at random and learn it like the others."""
    return patch.object(Compact, "whiten", lambda network, x: network.whitening.requires_grad_(True))


def draw_mirrored() -> AbstractContextManager[Any]:
    """Mirror each image at random in every epoch."""

    def draw(count: int, epoch: int, seed: int) -> np.ndarray:
        mirrored: np.ndarray = np.random.default_rng([seed, epoch, 1]).integers(0, 2, count) == 1
        return mirrored

    return patch.object(training.batches, "choose_mirrored", draw)


def use_lookahead() -> AbstractContextManager[Any]:
    """Replace the weights by their moving average every 5 steps, with a growing share (Lookahead, as in airbench)."""
    make = training.optimizers.make_optimizers

    class Lookahead:
        param_groups: tuple[dict[str, Any], ...] = ()

        def __init__(self, network: nn.Module, steps: int) -> None:
            self.fast = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
            self.slow = [tensor.clone() for tensor in self.fast]
            self.step_count, self.steps = 0, steps

        def zero_grad(self) -> None:
            pass

        def step(self) -> None:
            self.step_count += 1
            if self.step_count % 5 == 0:
                stays = 0.95**5 * (self.step_count / self.steps) ** 3
                for slow, fast in zip(self.slow, self.fast, strict=True):
                    slow.lerp_(fast, 1 - stays)
                    fast.copy_(slow)

    def make_with_lookahead(network: nn.Module, recipe: Recipe) -> list[Any]:
        steps = recipe.epochs * -(-TRAIN_IMAGES // recipe.batch_size)
        return [*make(network, recipe), Lookahead(network, steps)]

    return patch.object(training.loop, "make_optimizers", make_with_lookahead)


def use_blocks(filters: tuple[int, int, int], convolutions: tuple[int, int, int]) -> Change:
    """Use other numbers of filters and convolutions in the blocks."""
    return lambda: patch.multiple(compact, FILTERS=filters, CONVOLUTIONS=convolutions)


def start_as_identity() -> AbstractContextManager[Any]:
    """Initialize every convolution as the identity (dirac initialization)."""
    build = Block.__init__

    def init(block: Block, *arguments: Any) -> None:
        build(block, *arguments)
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.dirac_(layer.weight.data[: layer.in_channels])

    return patch.object(Block, "__init__", init)


def add_input() -> AbstractContextManager[Any]:
    """Add the input of every convolution except a block's first to its output (residual connections)."""

    def forward(block: Block, x: Tensor) -> Tensor:
        x = block[3](block[2](block[1](block[0](x))))
        for number in range(4, len(block), 3):
            x = block[number + 2](x + block[number + 1](block[number](x)))
        return x

    return patch.object(Block, "forward", forward)


VARIANTS: dict[str, tuple[dict[str, Any], Change]] = {
    "compact": ({}, nullcontext),
    "SGD instead of Muon": ({}, use_sgd),
    "learned first layer instead of whitening": ({}, learn_first_layer),
    "two convolutions in the last block, 88 filters": ({}, use_blocks((16, 64, 88), (2, 2, 2))),
    "ReLU instead of GELU in the blocks": ({}, lambda: patch.object(nn, "GELU", nn.ReLU)),
    "average instead of max pooling": ({}, lambda: patch.object(nn, "MaxPool2d", nn.AvgPool2d)),
    "lookahead": ({}, use_lookahead),
    "twice the learning rate for biases and dense layer": (
        {},
        lambda: patch.object(training.optimizers, "SGD_RATE", 8.0),
    ),
    "no mirroring": ({"mirror": False}, nullcontext),
    "random mirroring in each epoch": ({}, draw_mirrored),
    "no shifts": ({"shift": 0}, nullcontext),
    "no label smoothing": ({"label_smoothing": 0.0}, nullcontext),
    "dropout 0.1": ({"dropout": 0.1}, nullcontext),
    "identity initialisation": ({}, start_as_identity),
    "residual connections": ({}, add_input),
}


def main() -> None:
    """Train the missing runs, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    done = {(result["variant"], result["seed"], result["epochs"]) for result in results}
    wanted = [(name, seed, arguments.epochs) for seed in range(arguments.seeds) for name in arguments.variants]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        missing = [job for job in wanted if job not in done]
        path = _keep_arrays(arguments.data, Path(folder)) if missing else Path()
        for result in pool.map(measure, *zip(*[(path, *job) for job in missing], strict=True)) if missing else ():
            results.append(result)
            write_atomically(arguments.out, json.dumps(results, indent=1) + "\n")
            print(result, flush=True)
    Console().print(_tabulate([result for result in results if result["epochs"] == arguments.epochs]))


def _keep_arrays(data: str, folder: Path) -> Path:
    """Decode the images once for all runs; seed 0 decides the validation images of all."""
    dataset = load_dataset(data)
    path = folder / "arrays.npz"
    splits = {"train": dataset.train, "val": dataset.val}
    arrays: dict[str, Any] = {f"x_{name}": split.images for name, split in splits.items()}
    arrays |= {f"y_{name}": split.targets for name, split in splits.items()}
    np.savez(path, labels=dataset.labels, **arrays)
    return path


def measure(path: Path, variant: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train a variant. Return its accuracy on validation, plain and averaged over both views, and its CPU seconds."""
    torch.set_num_threads(1)
    with np.load(path) as arrays:
        train_split, val = (Split(arrays[f"x_{name}"], arrays[f"y_{name}"]) for name in ("train", "val"))
        labels = tuple(map(str, arrays["labels"]))
    dataset = Dataset("ladder", labels, train_split, val, val)
    overrides, change = VARIANTS[variant]
    with change(), tempfile.TemporaryDirectory() as folder:
        recipe = choose_recipe("compact", dataset, epochs=epochs, seed=seed, **overrides)
        config = RunConfig("ladder", None, False, "", labels, dataset.contract.shape, recipe)
        torch.manual_seed(seed)
        network = prepare_network(config.build_network(), train_split)
        started = time.process_time()
        run = Run.create(Path(folder) / "run", config)
        train(run, network, train_split, val)
        seconds = time.process_time() - started
        plain, mirrored = evaluate(network, val)[0], evaluate(Mirrored(network), val)[0]
    return {
        "variant": variant,
        "seed": seed,
        "epochs": epochs,
        "val_accuracy": plain,
        "val_accuracy_mirrored": mirrored,
        "cpu_seconds": round(seconds, 1),
    }


def _tabulate(results: list[dict[str, Any]]) -> Table:
    """Print one row per variant: mean and range over the seeds, and the mean difference to compact."""
    table = Table("variant", "validation", "spread", "difference", "mirrored", "difference", "CPU s")
    base = {result["seed"]: result for result in results if result["variant"] == "compact"}
    for variant in dict.fromkeys(result["variant"] for result in results):
        runs = [result for result in results if result["variant"] == variant]
        row = [variant]
        for figure in ("val_accuracy", "val_accuracy_mirrored"):
            values = [run[figure] for run in runs]
            differences = [run[figure] - base[run["seed"]][figure] for run in runs if run["seed"] in base]
            row += [f"{100 * mean(values):.2f}"]
            row += [f"{100 * min(values):.2f} to {100 * max(values):.2f}"] if figure == "val_accuracy" else []
            row += [f"{100 * mean(differences):+.2f}" if differences else ""]
        table.add_row(*row, f"{mean(run['cpu_seconds'] for run in runs):.0f}")
    return table


if __name__ == "__main__":
    main()
