"""Train the lecture's recipe on an image folder, export, serve, and classify every test image over gRPC.

    python -m benchmarks.quality.lecture DATA --out FILE

DATA is a folder with train/<class>/*.jpg and test/<class>/*.jpg. The benchmark runs the commands that a user types.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

EVALMODE = [sys.executable, "-m", "evalmode"]


def main() -> None:
    """Run everything once and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.data, Path(folder), arguments.seed, arguments.epochs)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {arguments.out}")


def measure(data: Path, folder: Path, seed: int, epochs: int) -> dict[str, object]:
    """Train, export, serve and predict; return the figures."""
    run, models = folder / "run", folder / "models"
    recipe = ("--network", "reference", "--seed", str(seed), "--epochs", str(epochs))
    train_s = timed("train", str(data), "--out", str(run), "--no-report", *recipe)
    export_s = timed("export", str(run), "--repository", str(models), "--name", "lecture")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "grpcio")},
        "recipe": json.loads((run / "run.json").read_text())["recipe"],
        "train_seconds": round(train_s, 1),
        "export_seconds": round(export_s, 1),
        "test_accuracy": metrics[-1]["test_accuracy"],
        "served_test_accuracy": served_accuracy(models, data / "test"),
        "best_epoch": metrics[-1]["best_epoch"],
        "epochs": [metric for metric in metrics if "val_accuracy" in metric],
    }


def timed(*command: str) -> float:
    """Run an evalmode command and return its seconds."""
    started = time.perf_counter()
    subprocess.run([*EVALMODE, *command], check=True)
    return time.perf_counter() - started


def served_accuracy(models: Path, test: Path) -> float:
    """Serve the model and classify every test image over gRPC."""
    command = [
        *EVALMODE,
        "serve",
        "--repository",
        str(models),
        "--port",
        "0",
        "--no-metrics",
        "--lame-duck",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split()[-1]
        predict = [*EVALMODE, "predict", str(test), "--address", f"127.0.0.1:{port}", "--csv", "--top-k", "1"]
        output = subprocess.run(predict, check=True, capture_output=True, text=True).stderr
        server.terminate()
    found = re.search(r"accuracy ([\d.]+)", output)
    assert found, output
    return float(found[1])


def processor() -> str:
    """Return the processor's name from Linux."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    main()
