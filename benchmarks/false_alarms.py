"""Honest exports that are refused: there should be none.

    python benchmarks/false_alarms.py --out benchmarks/results/DATE-false-alarms.json
    python benchmarks/false_alarms.py --out ... --qemu "qemu-x86_64 -cpu Nehalem"

Trains 50 small networks for an epoch, each of another shape, number of labels and seed, exports each, and runs every
check of `evalmode check`. With --qemu, every fifth is checked again on an emulated processor: other vector
instructions, other rounding.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.artifact import open_artifact
from serving.proof.verdicts import examine
from training.datasets import Dataset, Split
from training.export import export_run
from training.recipe import choose_recipe
from training.run import Run, RunConfig, write_atomically
from training.train import prepare_network, train

COUNT, EMULATED = 50, 5
SIDES = (8, 11, 16, 24, 28, 32, 48)
LABELS = (2, 3, 10, 37, 100)


@dataclass(frozen=True)
class Case:
    """One network to train."""

    network: str
    width: float
    shape: tuple[int, int, int]
    labels: int
    mirrored: bool
    seed: int


def list_cases() -> Iterator[Case]:
    """So many, no two alike."""
    rng = np.random.default_rng(0)
    for seed in range(COUNT):
        side, other = rng.choice(SIDES, 2)
        yield Case(
            network=("compact", "reference")[seed % 2],
            width=float(rng.choice([0.5, 1.0, 1.5])),
            shape=(int(side), int(other), int(rng.choice([1, 3]))),
            labels=int(rng.choice(LABELS)),
            mirrored=bool(rng.integers(2)),
            seed=seed,
        )


def draw(case: Case, count: int, part: int) -> Split:
    """Images of noise, brighter for higher labels."""
    rng = np.random.default_rng([case.seed, part])
    targets = np.arange(count) % case.labels
    base = 40 + 150 * targets / case.labels
    images = rng.normal(base[:, None, None, None], 30, (count, *case.shape))
    return Split(np.clip(images, 0, 255).astype(np.uint8), targets.astype(np.int64))


def export(case: Case, folder: Path) -> bytes:
    """Train for an epoch and export."""
    labels = tuple(f"label {number}" for number in range(case.labels))
    count = max(128, 2 * case.labels)
    dataset = Dataset("drawn", labels, draw(case, 2 * count, 0), draw(case, count, 1), draw(case, count, 2))
    recipe = choose_recipe(case.network, dataset, epochs=1, width=case.width, seed=case.seed, mirror=case.mirrored)
    run = Run.create(folder / "run", RunConfig.of(dataset, None, False, recipe))
    torch.manual_seed(case.seed)
    network = prepare_network(run.config.build_network(), dataset.train)
    train(run, network, dataset.train, dataset.val, lambda *_: None, lambda _: None)
    return export_run(run, dataset, case.mirrored)[0]


def measure(case: Case, emulator: list[str] | None) -> dict[str, Any]:
    """Export a case and check it, here and on the emulated processor."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifact = export(case, Path(folder))
        except Exception as error:
            return {**vars(case), "alarm": f"{type(error).__name__}: {error}"}
        alarms = [f"{verdict.check}: {verdict.told}" for verdict in examine(artifact) if verdict.passed is not True]
        certificate = open_artifact(artifact)[1].certificate
        assert certificate is not None
        told = {
            "alarm": "; ".join(alarms),
            "tolerance": certificate.tolerance,
            "invariant": certificate.batch_invariant,
        }
        if emulator and case.seed % EMULATED == 0:
            path = Path(folder) / "model.onnx"
            path.write_bytes(artifact)
            load = f"from serving.model import load_model; print(load_model({str(path)!r}).batch_invariant)"
            done = subprocess.run([*emulator, sys.executable, "-c", load], capture_output=True, text=True)
            told["emulated"] = done.stdout.strip() or done.stderr.strip().splitlines()[-1]
        return {**vars(case), **told}


def main() -> None:
    """Run all cases and tell how many alarms there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--qemu", type=shlex.split, help="the emulator and its options")
    arguments = parser.parse_args()
    results = []
    for case in list_cases():
        results.append(measure(case, arguments.qemu))
        print(results[-1], flush=True)
        write_atomically(arguments.out, json.dumps(results, indent=1) + "\n")
    alarms = sum(bool(result["alarm"]) for result in results)
    emulated = [result["emulated"] for result in results if "emulated" in result]
    print(f"{alarms} false alarms in {len(results)} honest exports; emulated: {emulated}")


if __name__ == "__main__":
    main()
