"""Measures each part of the compact network and its recipe on validation, by removing or adding one at a time.

    python -m benchmarks.quality.ladder DATA --out FILE

A variant is a recipe: what it changes is a field of it, the network among them. Every variant trains with the same
seeds, on one thread, several at once. Accuracy does not depend on time, so the machine may be busy. The test images are
not used. Differences to ``compact`` are paired by seed. Runs that the output file already contains are not repeated.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.record import add_out, read_unfinished, write_result
from training.datasets import Dataset, Split, load_dataset
from training.evaluation import evaluate
from training.loop import prepare_network, train
from training.onnx_export import Mirrored
from training.recipe import Recipe, choose_recipe
from training.run import Run
from training.run_config import RunConfig

TRAIN_IMAGES = 45_000
NETWORKS = "benchmarks.quality.compact_variants"
# Name: what the recipe has instead.
VARIANTS: dict[str, dict[str, Any]] = {
    "compact": {},
    "Adam as in `reference` instead of Muon": {"optimizer": "adam", "learning_rate": Recipe.learning_rate},
    "learned first layer instead of whitening": {"network": f"{NETWORKS}:learn_first_layer"},
    "two convolutions in the last block, 88 filters": {"network": f"{NETWORKS}:widen_last_block"},
    "ReLU instead of GELU in the blocks": {"network": f"{NETWORKS}:use_relu"},
    "average instead of max pooling": {"network": f"{NETWORKS}:use_average_pooling"},
    "no mirroring": {"mirror": False},
    "no shifts": {"shift": 0},
    "no label smoothing": {"label_smoothing": 0.0},
    "dropout 0.1": {"dropout": 0.1},
    "identity initialisation": {"network": f"{NETWORKS}:start_as_identity"},
    "residual connections": {"network": f"{NETWORKS}:add_input"},
}


def main() -> None:
    """Train the missing runs, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    add_out(parser)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = read_unfinished(arguments, "data").get("runs", [])
    done = {(result["variant"], result["seed"], result["epochs"]) for result in results}
    wanted = [(name, seed, arguments.epochs) for seed in range(arguments.seeds) for name in arguments.variants]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        missing = [job for job in wanted if job not in done]
        path = _keep_arrays(arguments.data, Path(folder)) if missing else Path()
        for result in pool.map(measure, *zip(*[(path, *job) for job in missing], strict=True)) if missing else ():
            results.append(result)
            write_result(arguments, {"runs": results})
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
    recipe = replace(choose_recipe("compact", dataset, epochs=epochs, seed=seed), **VARIANTS[variant])
    with tempfile.TemporaryDirectory() as folder:
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
