"""Counts valid exports that are refused. There should be none.

    python -m benchmarks.quality.false_alarms --out FILE
    python -m benchmarks.quality.false_alarms --out FILE --qemu "qemu-x86_64 -E OPENBLAS_CORETYPE=Nehalem -cpu Nehalem"
    python -m benchmarks.quality.false_alarms --out FILE --heads RUN --runs RUN...

Exports 50 small networks, each with another shape, number of labels and seed, as float32 and as int8, and runs every
check of `evalmode check`. The speed-up of int8 is not checked. With --heads and --runs, the exports are classifiers of
photos instead. RUN is the folder of a run of a pretrained network that `evalmode train` finished. --heads trains 20
heads on its features, each with other labels, images and splits and another penalty. --runs exports each run, plain and
mirrored.

With --qemu, every fifth is replayed on an emulated processor with other vector instructions and other rounding.
`load_ms`: time to load and replay one. `accuracy`: on the test images.
Exit 1 if an export is refused.
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
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.quality.photo_classifiers import list_heads, list_runs
from benchmarks.quality.small_networks import list_small_networks
from benchmarks.record import add_out, read_unfinished, write_result
from evalmode.artifact.sealing import open_artifact
from evalmode.certification.verdicts import examine
from evalmode.runtime.loading import load_artifact

EMULATED = 5
LOADS = "evalmode.runtime.loading"
REPLAY = """
import json, sys
import numpy as np
from evalmode.runtime.loading import load_model
model = load_model(sys.argv[1])
certificate = model.manifest.certificate
difference = np.abs(model.run(certificate.inputs)["logits"] - certificate.outputs["logits"]).max()
print(json.dumps({"invariant": model.batch_invariant, "difference": float(difference)}))
"""


def measure(
    facts: dict[str, Any], export: Callable[[Path], dict[str, bytes]], emulator: list[str] | None
) -> dict[str, Any]:
    """Export one and check it, here and on the emulated processor."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifacts = export(Path(folder))
        except Exception as error:
            return {**facts, "alarms": [f"{type(error).__name__}: {error}"]}
        results = {kind: check(artifact, kind, Path(folder), emulator) for kind, artifact in artifacts.items()}
    return {**facts, "alarms": [alarm for result in results.values() for alarm in result.pop("alarms")], **results}


def check(artifact: bytes, kind: str, folder: Path, emulator: list[str] | None) -> dict[str, Any]:
    """Run every check on an artifact, load it as a server does, and load it on the emulated processor."""
    alarms = [f"{kind}: {verdict.check}: {verdict.finding}" for verdict in examine(artifact) if not verdict.passed]
    manifest = open_artifact(artifact)[1]
    certificate, properties = manifest.certificate, manifest.properties
    assert certificate is not None
    started = time.perf_counter()
    load_artifact(artifact)
    result: dict[str, Any] = {
        "tolerance": certificate.tolerance,
        "invariant": certificate.batch_invariant,
        "load_ms": round((time.perf_counter() - started) * 1e3, 1),
        "accuracy": properties["quality"]["accuracy"],
        "commit": properties["versions"]["commit"],
    }
    if emulator:
        path = folder / f"{kind}.onnx"
        path.write_bytes(artifact)
        done = subprocess.run([*emulator, sys.executable, "-c", REPLAY, path], capture_output=True, text=True)
        result["emulated"] = json.loads(done.stdout) if done.returncode == 0 else None
        alarms += [f"{kind}: emulated: {done.stderr.strip()[-500:]}"] if done.returncode else []
    return {**result, "alarms": alarms}


def check_emulator(emulator: list[str]) -> None:
    """Check that the emulated processor runs what loads artifacts: a crash of a library is no false alarm.

    Args:
        emulator: The emulator and its options.

    Raises:
        SystemExit: It does not.
    """
    done = subprocess.run([*emulator, sys.executable, "-c", f"import {LOADS}"], capture_output=True, text=True)
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2]
        sys.exit(f"--qemu {shlex.join(emulator)} cannot import {LOADS}: {why}; emulate another processor")


def main() -> None:
    """Run all cases and print the number of false alarms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument("--heads", type=Path, metavar="RUN", help="export heads that are trained on its features")
    parser.add_argument("--runs", type=Path, metavar="RUN", nargs="+", default=[], help="export these runs")
    parser.add_argument("--qemu", type=shlex.split, help="the emulator and its options")
    arguments = parser.parse_args()
    if arguments.qemu:
        check_emulator(arguments.qemu)
    heads = list_heads(arguments.heads) if arguments.heads else ()
    cases = chain(heads, list_runs(arguments.runs)) if heads or arguments.runs else list_small_networks()
    results: list[dict[str, Any]] = read_unfinished(arguments, "heads", "runs", "qemu").get("runs", [])
    for number, (facts, export) in list(enumerate(cases))[len(results) :]:  # continue an interrupted run
        results.append(measure(facts, export, arguments.qemu if number % EMULATED == 0 else None))
        print(results[-1], flush=True)
        write_result(arguments, {"runs": results})
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
