"""Small networks to export, each with another shape, number of labels and seed, trained on drawn images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.datasets import Dataset, ReadOptions, Split
from training.export import certify_int8, export_run
from training.loop import prepare_network, train
from training.recipe import choose_recipe
from training.run import Run
from training.run_config import RunConfig

# What is exported, and a function that exports it as float32 and as int8. The function takes an empty folder.
Exports = Iterator[tuple[dict[str, Any], Callable[[Path], dict[str, bytes]]]]

COUNT = 50
SIDES = (8, 11, 16, 24, 28, 32, 48)
LABELS = (2, 3, 10, 37, 100)


@dataclass(frozen=True)
class SmallNetwork:
    """A network to train."""

    network: str
    width: float
    shape: tuple[int, int, int]
    labels: int
    imbalanced: bool
    mirrored: bool
    seed: int


def list_small_networks() -> Exports:
    """List 50 different networks."""
    rng = np.random.default_rng(0)
    for seed in range(COUNT):
        side, other = rng.choice(SIDES, 2)
        case = SmallNetwork(
            network=("compact", "reference")[seed % 2],
            width=float(rng.choice([0.5, 1.0, 1.5])),
            shape=(int(side), int(other), int(rng.choice([1, 3]))),
            labels=int(rng.choice(LABELS)),
            imbalanced=bool(rng.integers(4) == 0),
            mirrored=bool(rng.integers(2)),
            seed=seed,
        )
        yield vars(case), partial(export_small_network, case)


def draw(case: SmallNetwork, count: int, part: int) -> Split:
    """Draw images of noise that are brighter for higher labels."""
    rng = np.random.default_rng([case.seed, part])
    targets = np.arange(count) % case.labels
    if case.imbalanced:
        targets[case.labels :] *= rng.random(count - case.labels) < 0.05  # the others get the first label
    base = 40 + 150 * targets / case.labels
    images = rng.normal(base[:, None, None, None], 30, (count, *case.shape))
    return Split(np.clip(images, 0, 255).astype(np.uint8), targets.astype(np.int64))


def export_small_network(case: SmallNetwork, folder: Path) -> dict[str, bytes]:
    """Train for an epoch and export."""
    labels = tuple(f"label {number}" for number in range(case.labels))
    count = max(128, 2 * case.labels)
    dataset = Dataset("drawn", labels, draw(case, 2 * count, 0), draw(case, count, 1), draw(case, count, 2))
    recipe = choose_recipe(case.network, dataset, epochs=1, width=case.width, seed=case.seed, mirror=case.mirrored)
    run = Run.create(folder / "run", RunConfig.of(dataset, ReadOptions(), recipe))
    torch.manual_seed(case.seed)
    network = prepare_network(run.config.build_network(), dataset.train)
    train(run, network, dataset.train, dataset.val)
    return export_both(run, dataset, case.mirrored)


def export_both(run: Run, dataset: Dataset, mirrored: bool) -> dict[str, bytes]:
    """Export a run with every gate, as float32 and as int8."""
    artifact = export_run(run, dataset, mirrored).artifact
    return {"float32": artifact, "int8": certify_int8(artifact, dataset)}
