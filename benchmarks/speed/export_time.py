"""Times the export of a run, function by function, and measures how much larger the artifact is than its weights.

    python -m benchmarks.speed.export_time RUN [--mirrored] [--out FILE]

RUN is a run folder that ``evalmode train`` wrote. Python's profiler times the export; a function contains the functions
that it calls. `cpu_s` counts all threads. Reading the data comes first, as in ``evalmode export``.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.record import add_out, write_result
from training.callbacks import SILENT
from training.export import export_run
from training.loading import reload_data
from training.run import Run
from training.torch_runtime import import_torch

SHOWN = 0.01  # the least share of the time that a function is listed with


def measure(folder: Path, mirrored: bool) -> dict[str, Any]:
    """Export a run, and time its functions."""
    import_torch()
    profile = cProfile.Profile()
    started, cpu = time.perf_counter(), time.process_time()
    with profile:
        run = Run.open(folder)
        dataset = reload_data(run, None, None, SILENT)
        exported = export_run(run, dataset, mirrored)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    weights = sum(value.numel() * value.element_size() for value in run.config.build_network().parameters())
    return {
        "images": [len(split.images) for split in (dataset.train, dataset.val, dataset.test)],
        "shape": dataset.contract.shape,
        "agreement": asdict(exported.agreement),
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "artifact_bytes": len(exported.artifact),
        "bytes_above_weights": len(exported.artifact) - weights,
        "functions": list_functions(profile, SHOWN * wall_s),
    }


def list_functions(profile: cProfile.Profile, least_s: float) -> list[dict[str, Any]]:
    """List the functions of this repository that took the longest, each with its calls and its seconds."""
    timings = pstats.Stats(profile).get_stats_profile().func_profiles.items()
    return [
        {"name": f"{place}.{name}", "calls": int(timing.ncalls.split("/")[0]), "wall_s": timing.cumtime}
        for name, timing in sorted(timings, key=lambda item: -item[1].cumtime)
        if timing.cumtime >= least_s and (place := describe_place(timing.file_name))
    ]


def describe_place(file_name: str) -> str:
    """Return the module of a file of this repository; empty for other files."""
    path = Path(file_name)
    return ".".join(path.relative_to(ROOT).with_suffix("").parts) if path.is_relative_to(ROOT) else ""


def main() -> None:
    """Print the functions, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--mirrored", action="store_true")
    add_out(parser, required=False)
    arguments = parser.parse_args()
    result = measure(arguments.run, arguments.mirrored)
    for function in result["functions"]:
        print(f"{function['wall_s']:7.2f} s {function['calls']:6} calls  {function['name']}")
    print(f"{result['wall_s']:7.2f} s, {result['cpu_s']:.2f} s CPU in all, of {result['images']} images")
    print(f"{result['artifact_bytes']:,} bytes, {result['bytes_above_weights']:,} more than the weights")
    write_result(arguments, result)


if __name__ == "__main__":
    main()
