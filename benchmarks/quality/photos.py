"""Measure classifiers of photos: accuracy on test images that were read once, and the time from the start to the report.

Parts, each of which trains by ``evalmode train`` unless it is ``plain``:

- ``default``: no option; a run for each seed.
- ``head``: five outer folds with ``--fine-tune none``; the accuracy is pooled over all images.
- ``few``: 20 images of each label, drawn five times, with ``--fine-tune none``; all other images are the test images.
- ``compact``: from scratch, at 128x128; a run for each seed.
- ``plain``: a plain loop of fine-tuning on the same weights, with the time of the part ``default``; a run for each seed.

Every finished run is a line of the result file, and is not repeated.

Example: ``python benchmarks/quality/photos.py trashnet/ --part default --out results/photos.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training.run import Run

FOLDS = 5
FEW, DRAWS = 20, 5  # images of each label, and the number of draws
PLAIN_RATE, PLAIN_MOMENTUM, PLAIN_DECAY = 0.01, 0.9, 1e-4  # those of torchvision's references, for batches of 32
BATCH = 32


def main() -> None:
    """Run the chosen parts, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of <label>/<photo>")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="result file, a line of JSON per run")
    arguments = parser.parse_args()
    for part in arguments.part or PARTS:
        for name, run in PARTS[part](arguments.data.resolve(), arguments.seeds):
            if name in {one["name"] for one in read(arguments.out)}:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = {"part": part, "name": name, "data": arguments.data.name, **run(Path(folder))}
            with arguments.out.open("a") as file:
                file.write(json.dumps({**found, "processor": platform.processor() or platform.machine()}) + "\n")
    summarise(read(arguments.out))


def read(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a result file; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(data: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Train by the command, and return accuracy, the number of test images, and the seconds from start to report."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "evalmode", "train", str(data), "--out", str(folder / "run"), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    run = Run.open(folder / "run")
    result, logits = run.read_result(), run.read_logits()
    images = len(logits["test"]) if logits else 0
    return {
        "accuracy": result.test_accuracy,
        "val_accuracy": result.exact_val_accuracy,
        "images": images,
        "seconds": round(seconds, 1),
        "stages": {stage["stage"]: round(stage["seconds"], 1) for stage in result.stages},
    }
