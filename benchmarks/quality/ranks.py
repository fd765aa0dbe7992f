"""One training in one process and in two, on the same cores: test accuracy, wall clock time, exact statistics.

    python -m benchmarks.quality.ranks DATA --seeds 3 --epochs 6 --out FILE

The benchmark runs the commands that a user types, alternating for each seed. The statistics that two processes computed
together are compared with those that one process computes for the same weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

import platformdirs

from benchmarks.record import add_out, write_result
from training.datasets import load_dataset
from training.run import BEST, EXACT, Run
from training.statistics import recompute_statistics

TRAIN = {
    1: [sys.executable, "-m", "evalmode", "train"],
    2: [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "evalmode", "train"],
}


def main() -> None:
    """Train in turns; write the figures and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    add_out(parser)
    arguments = parser.parse_args()
    results = []
    for seed in range(arguments.seeds):
        for count in (1, 2) if seed % 2 == 0 else (2, 1):
            with tempfile.TemporaryDirectory() as folder:
                results.append(measure(arguments.data, Path(folder, "run"), seed, arguments.epochs, count))
            print(results[-1], flush=True)
    write_result(arguments, {"trainings": results})
    for count in TRAIN:
        for name in ("test_accuracy", "seconds", "epoch_seconds", "statistics_differ"):
            values = [result[name] for result in results if result["processes"] == count]
            print(f"{count} {name:18} {mean(values):.4g} ({min(values):.4g} to {max(values):.4g})")


def measure(data: str, out: Path, seed: int, epochs: int, count: int) -> dict[str, float]:
    """Train once.

    Args:
        data: The DATA argument of the training.
        out: Folder of the runs.
        seed: Seed of the training.
        epochs: Number of epochs.
        count: Number of processes.
    """
    options = ["--out", str(out), "--seed", str(seed), "--epochs", str(epochs), "--no-report"]
    started = time.perf_counter()
    subprocess.run([*TRAIN[count], data, *options], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "processes": count,
        "seed": seed,
        "test_accuracy": metrics[-1]["test_accuracy"],
        "seconds": round(seconds, 1),
        "epoch_seconds": round(mean(line["seconds"] for line in metrics if "seconds" in line), 2),
        "statistics_differ": compare_statistics(Run.open(out), data, seed),
    }


def compare_statistics(run: Run, data: str, seed: int) -> float:
    """Return the largest difference between the exact statistics of a run and of one process, relative above 1."""
    dataset = load_dataset(data, seed=seed, cache=platformdirs.user_cache_path("evalmode"))
    network, kept = run.config.build_network(), run.config.build_network()
    run.load_weights(network, BEST)
    recompute_statistics(network, dataset.train)
    run.load_weights(kept, EXACT)
    pairs = zip(network.state_dict().values(), kept.state_dict().values(), strict=True)
    return max(float(((one - other).abs() / one.abs().clamp_min(1)).max()) for one, other in pairs)


if __name__ == "__main__":
    main()
