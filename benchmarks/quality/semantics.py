"""The lecture's CNN with the settings of Keras, with torch's defaults, and with one of these at a time.

    python -m benchmarks.quality.semantics DATA --seeds 3 --out FILE

Two trainings run at a time, on one thread each. Seeds are the outer loop, so variants are interleaved. Test accuracy is
that of the epoch with the best validation, with the moving averages that training leaves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

import platformdirs
import torch
from torch import nn

import training.loop
import training.optimizers
from benchmarks.processes import list_command, make_environment
from benchmarks.record import add_out, write_result
from training.callbacks import Callbacks
from training.datasets import ReadOptions, load_dataset
from training.evaluation import evaluate
from training.networks.reference import Reference
from training.networks.same_padding import SameConv2d
from training.recipe import choose_recipe
from training.run import Run
from training.run_config import RunConfig

DEFAULTS = ("padding", "batch norm", "initial weights", "slope", "epsilon")  # defaults of torch that differ from Keras
VARIANTS = {"keras": (), "torch": DEFAULTS, **{f"torch's {one}": (one,) for one in DEFAULTS}}


def main() -> None:
    """Train every variant with every seed, each in a process of its own; write the figures and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["keras", "torch"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)  # of the process's only training
    add_out(parser, required=False)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)  # of the process's only training
    arguments = parser.parse_args()
    if arguments.seed is not None:
        figures = train(arguments.data, arguments.variants[0], arguments.seed, arguments.epochs)
        arguments.figures.write_text(json.dumps(figures))
        return
    jobs = [(seed, variant) for seed in range(arguments.seeds) for variant in arguments.variants]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: run(arguments.data, job[0], job[1], arguments.epochs), jobs))
    write_result(arguments, {"trainings": results})
    for variant in arguments.variants:
        for name in ("test_accuracy", "val_accuracy", "first_epoch_val_accuracy"):
            values = [float(result[name]) for result in results if result["variant"] == variant]
            print(f"{variant:24} {name:26} {mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")


def run(data: str, seed: int, variant: str, epochs: int) -> dict[str, float | str]:
    """Run one training in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        options = ("--variants", variant, "--seed", seed, "--epochs", epochs, "--figures", out)
        command = list_command("benchmarks.quality.semantics", data, *options)
        subprocess.run(command, check=True, env=make_environment(OMP_NUM_THREADS="1"))
        figures: dict[str, float | str] = json.loads(out.read_text())
    print(figures, flush=True)
    return figures


def train(data: str, variant: str, seed: int, epochs: int) -> dict[str, float | str]:
    """Train a variant and evaluate the test images once."""
    dataset = load_dataset(data, seed=seed, cache=platformdirs.user_cache_path("evalmode"))
    recipe = choose_recipe("reference", dataset, seed=seed, epochs=epochs)
    config = RunConfig.of(dataset, ReadOptions(), recipe)
    torch.manual_seed(seed)
    network = config.build_network()
    for default in VARIANTS[variant]:
        take_default(network, default)
    values: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        kept = Run.create(Path(folder), config)
        best = training.loop.train(
            kept,
            network,
            dataset.train,
            dataset.val,
            Callbacks(on_epoch=lambda epoch: values.append(epoch.val_accuracy)),
        )
        kept.load_weights(network)
    return {
        "variant": variant,
        "seed": seed,
        "best_epoch": best.epoch,
        "test_accuracy": round(evaluate(network, dataset.test)[0], 4),
        "val_accuracy": best.val_accuracy,
        "first_epoch_val_accuracy": values[0],
    }


def take_default(network: nn.Module, default: str) -> None:
    """Replace one setting of Keras by torch's default."""
    assert isinstance(network, Reference)
    if default == "epsilon":
        training.optimizers.ADAM_EPS = 1e-8
    for index, module in enumerate(network.features):
        if default == "padding" and isinstance(module, SameConv2d):
            filters, channels = module.weight.shape[:2]
            network.features[index] = nn.Conv2d(channels, filters, 3, module.stride[0], padding=1)
            network.features[index].load_state_dict(module.state_dict())
    for module in network.modules():
        if default == "batch norm" and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps, module.momentum = 1e-5, 0.1
        elif default == "initial weights" and isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
        elif default == "slope" and isinstance(module, nn.LeakyReLU):
            module.negative_slope = 0.01


if __name__ == "__main__":
    main()
