"""Counts valid exports that are refused. There should be none.

    python benchmarks/false_alarms.py --out benchmarks/results/DATE-false-alarms.json
    python benchmarks/false_alarms.py --out ... --qemu "qemu-x86_64 -cpu Nehalem"

Trains 50 small networks for an epoch, each with another shape, number of labels and seed, exports each, and runs every
check of `evalmode check`, as float32 and as int8, regardless of the speed-up. With --qemu, every fifth is replayed on
an emulated processor with other vector instructions and other rounding. `load_ms`: time to load and replay one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import training.export
from evalmode.artifact.sealing import open_artifact
from evalmode.certification.verdicts import examine
from evalmode.files import write_atomically
from evalmode.runtime.loading import load_artifact
from training.datasets import Dataset, ReadOptions, Split
from training.export import export_run, quantize_artifact
from training.loop import prepare_network, train
from training.recipe import choose_recipe
from training.run import Run
from training.run_config import RunConfig

COUNT, EMULATED = 50, 5
REPLAY = """
import json, sys
import numpy as np
from evalmode.runtime.loading import load_model
model = load_model(sys.argv[1])
certificate = model.manifest.certificate
difference = np.abs(model.run(certificate.inputs)["logits"] - certificate.outputs["logits"]).max()
print(json.dumps({"invariant": model.batch_invariant, "difference": float(difference)}))
"""
SIDES = (8, 11, 16, 24, 28, 32, 48)
LABELS = (2, 3, 10, 37, 100)


@dataclass(frozen=True)
class Case:
    """A network to train."""

    network: str
    width: float
    shape: tuple[int, int, int]
    labels: int
    imbalanced: bool
    mirrored: bool
    seed: int


def list_cases() -> Iterator[Case]:
    """List 50 different cases."""
    rng = np.random.default_rng(0)
    for seed in range(COUNT):
        side, other = rng.choice(SIDES, 2)
        yield Case(
            network=("compact", "reference")[seed % 2],
            width=float(rng.choice([0.5, 1.0, 1.5])),
            shape=(int(side), int(other), int(rng.choice([1, 3]))),
            labels=int(rng.choice(LABELS)),
            imbalanced=bool(rng.integers(4) == 0),
            mirrored=bool(rng.integers(2)),
            seed=seed,
        )


def draw(case: Case, count: int, part: int) -> Split:
    """Draw images of noise that are brighter for higher labels."""
    rng = np.random.default_rng([case.seed, part])
    targets = np.arange(count) % case.labels
    if case.imbalanced:
        targets[case.labels :] *= rng.random(count - case.labels) < 0.05  # the others get the first label
    base = 40 + 150 * targets / case.labels
    images = rng.normal(base[:, None, None, None], 30, (count, *case.shape))
    return Split(np.clip(images, 0, 255).astype(np.uint8), targets.astype(np.int64))


def export(case: Case, folder: Path) -> dict[str, bytes]:
    """Train for an epoch and export, as float32 and as int8."""
    labels = tuple(f"label {number}" for number in range(case.labels))
    count = max(128, 2 * case.labels)
    dataset = Dataset("drawn", labels, draw(case, 2 * count, 0), draw(case, count, 1), draw(case, count, 2))
    recipe = choose_recipe(case.network, dataset, epochs=1, width=case.width, seed=case.seed, mirror=case.mirrored)
    run = Run.create(folder / "run", RunConfig.of(dataset, ReadOptions(), recipe))
    torch.manual_seed(case.seed)
    network = prepare_network(run.config.build_network(), dataset.train)
    train(run, network, dataset.train, dataset.val)
    artifact = export_run(run, dataset, case.mirrored).artifact
    with patch.object(training.export, "check_gain", str):  # whatever the speed-up
        return {"float32": artifact, "int8": quantize_artifact(artifact, dataset)[0]}


def measure(case: Case, emulator: list[str] | None) -> dict[str, Any]:
    """Export a case and check it, here and on the emulated processor."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifacts = export(case, Path(folder))
        except Exception as error:
            return {**vars(case), "alarms": [f"{type(error).__name__}: {error}"]}
        results = {kind: check(artifact, kind, Path(folder), emulator) for kind, artifact in artifacts.items()}
    return {**vars(case), "alarms": [alarm for result in results.values() for alarm in result.pop("alarms")], **results}


def check(artifact: bytes, kind: str, folder: Path, emulator: list[str] | None) -> dict[str, Any]:
    """Run every check on an artifact, load it as a server does, and load it on the emulated processor."""
    alarms = [f"{kind}: {verdict.check}: {verdict.finding}" for verdict in examine(artifact) if not verdict.passed]
    certificate = open_artifact(artifact)[1].certificate
    assert certificate is not None
    started = time.perf_counter()
    load_artifact(artifact)
    result: dict[str, Any] = {
        "tolerance": certificate.tolerance,
        "invariant": certificate.batch_invariant,
        "load_ms": round((time.perf_counter() - started) * 1e3, 1),
    }
    if emulator:
        path = folder / f"{kind}.onnx"
        path.write_bytes(artifact)
        done = subprocess.run([*emulator, sys.executable, "-c", REPLAY, path], capture_output=True, text=True)
        result["emulated"] = json.loads(done.stdout) if done.returncode == 0 else None
        alarms += [f"{kind}: emulated: {done.stderr.strip()[-500:]}"] if done.returncode else []
    return {**result, "alarms": alarms}


def main() -> None:
    """Run all cases and print the number of false alarms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--qemu", type=shlex.split, help="the emulator and its options")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    for case in list(list_cases())[len(results) :]:  # continue an interrupted run
        results.append(measure(case, arguments.qemu if case.seed % EMULATED == 0 else None))
        print(results[-1], flush=True)
        write_atomically(arguments.out, json.dumps(results, indent=1) + "\n")
    alarms = sum(len(result["alarms"]) for result in results)
    checked = [result[kind] for result in results for kind in ("float32", "int8") if kind in result]
    emulated = [one["emulated"] for one in checked if one.get("emulated")]
    median = statistics.median(one["load_ms"] for one in checked)
    print(
        f"{alarms} false alarms in {len(results)} honest exports, each as float32 and int8; "
        f"{sum(one['invariant'] for one in checked)} of {len(checked)} have the same bits in every batch; "
        f"{len(emulated)} emulated, {sum(one['invariant'] for one in emulated)} of them with the same bits there, too; "
        f"loaded in {median:.0f} ms (median), {max(one['load_ms'] for one in checked):.0f} ms at most"
    )
    sys.exit(bool(alarms))


if __name__ == "__main__":
    main()
