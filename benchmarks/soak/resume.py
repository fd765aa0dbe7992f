"""Kill a training at random moments and resume it: every artifact has the bytes of an uninterrupted run.

    python -m benchmarks.soak.resume --out FILE [--runs 20] [--network compact]

Each run of digits gets one SIGKILL at a random moment between the creation of its folder and the end of an
uninterrupted training, then `--resume`, then export. Exit 1 if an artifact differs.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.record import add_out, write_result

COMMAND = (sys.executable, "-m", "evalmode")


def main() -> None:
    """Train, kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--network", default="compact")
    arguments = parser.parse_args()
    chance = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ("--epochs", str(arguments.epochs), "--network", arguments.network, "--no-report")
        whole_s = train(folder / "whole", *options)
        expected = export(folder / "whole")
        runs = []
        for number in range(arguments.runs):
            kill_s = chance.uniform(0, whole_s)
            train(folder / str(number), *options, kill_s=kill_s)
            found = sorted(path.name for path in (folder / str(number)).glob("*") if "events" not in path.name)
            train(folder / str(number), *options, "--resume")
            same = export(folder / str(number)) == expected
            runs.append({"killed_after_s": round(kill_s, 2), "found": found, "same": same})
            print(runs[-1], flush=True)
    record = {"network": arguments.network, "whole_s": round(whole_s, 1), "sha256": expected, "runs": runs}
    write_result(arguments, record)
    if not all(run["same"] for run in runs):
        sys.exit(1)


def train(out: Path, *options: str, kill_s: float | None = None) -> float:
    """Train on digits, to the end or until killed. Return the seconds since the run's folder was created."""
    command = [*COMMAND, "train", "digits", "--out", str(out), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (out / "run.json").exists():
            time.sleep(0.01)
        started = time.monotonic()
        try:
            process.wait(kill_s)
        except subprocess.TimeoutExpired:
            process.kill()
        else:
            if process.returncode:
                sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.monotonic() - started


def export(run: Path) -> str:
    """Return the digest of a run's artifact."""
    command = [*COMMAND, "export", str(run), "--repository", str(run / "models"), "--name", "digits"]
    subprocess.run(command, check=True, capture_output=True)
    return hashlib.sha256((run / "models" / "digits" / "1" / "model.onnx").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
