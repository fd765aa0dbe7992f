"""Cost and accuracy of classifiers: the lecture's two networks, `compact`, and the Keras original.

    python -m benchmarks.quality.train DATA --keras-python KERAS/bin/python --seeds 3 --out FILE
    python -m benchmarks.quality.train --from FILE       prints the table and the plot again

DATA is a folder of train/<label>/* and test/<label>/*, RGB images of one size. Every contestant of a seed learns from
the same images. Its seconds run from the start of its first process to the artifact on disk, including decoding,
without the report. Its memory is the peak of its largest process. Seeds are interleaved. An interrupted benchmark
continues when the same command is run again. The Keras environment: benchmarks/peers/keras/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, list_command, make_environment
from benchmarks.quality.standings import KERAS, draw_plot, print_table, summarise
from benchmarks.record import add_out, read_unfinished, write_result

LECTURE = ("--epochs", "10", "--batch-size", "32", "--learning-rate", "5e-4")
OPTIONS = {  # of `evalmode train`
    "dense": ("--network", "benchmarks.quality.dense:build", *LECTURE),
    "reference": ("--network", "reference"),
    "compact": ("--network", "compact"),
}
CONTESTANTS = (*OPTIONS, KERAS)
EPOCH = ("epoch", "loss", "train_accuracy", "val_accuracy", "val_loss", "seconds")  # what is kept of each
MIRRORED = "compact"  # exported a second time, outside the measured time
KERAS_VERSIONS = "import json, keras, tensorflow as t; print(json.dumps([keras.__version__, t.__version__]))"


@dataclass(frozen=True)
class Job:
    """The settings of all runs.

    Attributes:
        data: The image folder.
        keras_python: The interpreter of the Keras environment; None without Keras.
        epochs: Number of epochs for a quick test; None: the number of each recipe.
    """

    data: Path
    keras_python: Path | None
    epochs: int | None

    @property
    def epochs_option(self) -> tuple[str, ...]:
        """The additional options of a training command."""
        return () if self.epochs is None else ("--epochs", str(self.epochs))


@dataclass(frozen=True)
class Finished:
    """A finished process: its wall clock time, the peak of its resident memory, and its output."""

    seconds: float
    peak_bytes: int
    output: str


def main() -> None:
    """Run the requested trainings and print the figures."""
    arguments = parse_arguments()
    out = arguments.shown or arguments.out
    if not arguments.shown:
        job = Job(arguments.data.resolve(), arguments.keras_python, arguments.epochs)
        compete(job, arguments)
    results = json.loads(out.read_text())
    print_table(results)
    draw_plot(results, out.with_suffix(".png"))
    print(f"{out} and {out.with_suffix('.png')}")


def parse_arguments() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    add_out(parser, required=False)
    parser.add_argument("--from", dest="shown", type=Path, help="run nothing, show these results")
    parser.add_argument("--seeds", type=parse_seeds, default=range(3), help="how many, or a list: 0,1,2")
    parser.add_argument("--contestants", type=parse_contestants, default=CONTESTANTS, help=",".join(CONTESTANTS))
    parser.add_argument("--keras-python", type=Path, help="the interpreter of the Keras environment")
    parser.add_argument("--epochs", type=int, help="for every contestant, instead of its own")
    arguments = parser.parse_args()
    if not arguments.shown and not (arguments.data and arguments.out):
        parser.error("DATA and --out are needed, or --from")
    if not arguments.shown and KERAS in arguments.contestants and not arguments.keras_python:
        parser.error("--keras-python is needed, or --contestants without keras")
    return arguments


def parse_seeds(text: str) -> Sequence[int]:
    """Parse seeds: ``3`` means 0, 1 and 2; ``3,`` means 3 only."""
    return [int(seed) for seed in text.split(",") if seed] if "," in text else range(int(text))


def parse_contestants(text: str) -> tuple[str, ...]:
    """Parse names of contestants, in the order to run them."""
    names = tuple(text.split(","))
    if not set(names) <= set(CONTESTANTS):
        raise argparse.ArgumentTypeError(f"choose from {','.join(CONTESTANTS)}")
    return names


def compete(job: Job, arguments: argparse.Namespace) -> None:
    """Run every contestant with every seed that the results do not contain yet, saving after each run."""
    results = open_results(job, arguments)
    finished = {(run["seed"], run["contestant"]) for run in results["runs"]}
    for seed, contestant in product(arguments.seeds, arguments.contestants):
        if (seed, contestant) in finished:
            continue
        print(f"\n{contestant}, seed {seed}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run = run_keras if contestant == KERAS else run_evalmode
            figures = run(job, contestant, seed, Path(folder))
        results["runs"].append({"contestant": contestant, "seed": seed, **figures})
        results["summary"] = summarise(results["runs"])
        write_result(arguments, results)


def open_results(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return new results, or those of an interrupted benchmark if commit, Keras and epochs are the same."""
    header = {"keras": find_keras(job.keras_python), "epochs": job.epochs or "every recipe's own"}
    results = read_unfinished(arguments, "data") or {**header, "runs": [], "summary": {}}
    for name, value in header.items():
        if results[name] != value:
            sys.exit(f"{arguments.out} was begun with {name} {results[name]}, not {value}: choose another --out")
    return results


def find_keras(python: Path | None) -> dict[str, str]:
    """Return the versions of Keras and TensorFlow. Fails early if their environment does not work."""
    if python is None:
        return {}
    output = subprocess.run([python, "-c", KERAS_VERSIONS], check=True, stdout=subprocess.PIPE).stdout
    return dict(zip(("keras", "tensorflow"), json.loads(output), strict=True))


def run_evalmode(job: Job, contestant: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and export with the commands that a user types."""
    run, models = folder / "run", folder / "models"
    options = (*OPTIONS[contestant], *job.epochs_option, "--seed", str(seed), "--no-report")
    publish = list_command("evalmode", "export", run, "--repository", models, "--name", contestant)
    training = run_process(*list_command("evalmode", "train", job.data, "--out", run, *options))
    export = run_process(*publish)
    *lines, result = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    figures = {
        "test_accuracy": result["test_accuracy"],
        "seconds": round(training.seconds + export.seconds, 1),
        "export_seconds": round(export.seconds, 1),
        "peak_bytes": max(training.peak_bytes, export.peak_bytes),
        "training_peak_bytes": training.peak_bytes,
        **aside(count_network, run),
        "epochs": [{name: line[name] for name in EPOCH} for line in lines if "loss" in line],
    }
    if contestant == MIRRORED:
        match = re.search(r"accuracy\s+([\d.]+)", run_process(*publish, "--mirrored").output)
        assert match
        figures["mirrored_accuracy"] = float(match[1])
    return figures


def run_keras(job: Job, contestant: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train the Keras original on the images that evalmode trains on with this seed."""
    shape = aside(list_images, job.data, seed, folder)
    lists = ("--train", folder / "train.txt", "--test", folder / "test.txt")
    script = (job.keras_python, ROOT / "benchmarks" / "peers" / "keras" / "train.py")
    finished = run_process(*script, *lists, "--out", folder, "--seed", seed, *job.epochs_option)
    figures = json.loads((folder / "figures.json").read_text())
    return {
        **figures,
        "seconds": round(finished.seconds, 1),
        "peak_bytes": finished.peak_bytes,
        "training_peak_bytes": finished.peak_bytes,
        "multiply_adds": aside(count_reference, *shape),  # the same network
    }


def run_process(*command: object) -> Finished:
    """Run a command to its end and pass on its output."""
    argv, environment = list(map(str, command)), make_environment()
    started, lines = time.perf_counter(), []
    with subprocess.Popen(argv, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line)
            print("   ", line, end="", flush=True)
        _, status, usage = os.wait4(
            child.pid, 0
        )  # the peak of this child; getrusage would mix it with that of the others
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"exit code {child.returncode}: {' '.join(argv)}")
    return Finished(time.perf_counter() - started, usage.ru_maxrss * 1024, "".join(lines))


def aside(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a process of its own, since this process's memory would count as the peak of its children."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def list_images(data: Path, seed: int, folder: Path) -> tuple[tuple[int, int, int], int]:
    """Write train.txt and test.txt: the files whose pixels evalmode has in these splits with this seed.

    Returns:
        The images' height, width and channels, and the number of labels.
    """
    import numpy as np
    from PIL import Image

    from training.datasets import load_dataset

    dataset = load_dataset(str(data), seed=seed)
    for name in ("train", "test"):
        split, lines = getattr(dataset, name), []
        wanted = Counter((target, image.tobytes()) for target, image in zip(split.targets, split.images, strict=True))
        for target, label in enumerate(dataset.labels):
            for path in sorted((data / name / label).iterdir()):
                image = target, np.asarray(Image.open(path).convert("RGB")).tobytes()
                if wanted[image]:
                    wanted[image] -= 1
                    lines.append(f"{target}\t{path}\n")
        assert len(lines) == len(split), f"{len(lines)} of the {len(split)} {name} images found among the files"
        (folder / f"{name}.txt").write_text("".join(lines))
    return dataset.contract.shape, len(dataset.labels)


def count_network(run: Path) -> dict[str, int]:
    """Count the multiply-adds per image and the weights (including those that are not trained) of a run's network."""
    from training.networks import count_multiply_adds
    from training.run import Run

    config = Run.open(run).config
    network = config.build_network()
    weights = sum(tensor.numel() for tensor in network.state_dict().values() if tensor.is_floating_point())
    return {"multiply_adds": count_multiply_adds(network, config.shape), "weights": weights}


def count_reference(shape: tuple[int, int, int], classes: int) -> int:
    """Count the multiply-adds per image of the lecture's CNN, for images of (height, width, channels)."""
    from training.networks import count_multiply_adds
    from training.networks.reference import Reference

    height, width, channels = shape
    return count_multiply_adds(Reference(channels, height, width, classes), shape)


if __name__ == "__main__":
    main()
