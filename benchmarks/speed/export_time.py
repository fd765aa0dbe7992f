"""Times the export of a run, function by function, and measures how much larger the artifact is than its weights.

    python -m benchmarks.speed.export_time RUN [--mirrored] [--out FILE]

RUN is a run folder that ``evalmode train`` wrote. It is exported twice. The first export gives `wall_s` and `cpu_s`,
which counts all threads. Python's profiler times the functions of the second: it slows Python down, so compare these
seconds with each other only. A function contains the functions that it calls. Reading the data comes first, as in
``evalmode export``.
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
from training.datasets.dataset import Dataset
from training.export import Exported, export_run
from training.loading import reload_data
from training.run import Run
from training.torch_runtime import import_torch

SHOWN = 0.01  # the least share of the time that a function is listed with


def measure(folder: Path, mirrored: bool) -> dict[str, Any]:
    """Export a run, and time its functions."""
    import_torch()
    started, cpu = time.perf_counter(), time.process_time()
    run, dataset, exported = export(folder, mirrored)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    with cProfile.Profile() as profile:
        export(folder, mirrored)
    weights = sum(value.numel() * value.element_size() for value in run.config.build_network().parameters())
    return {
        "images": [len(split.images) for split in (dataset.train, dataset.val, dataset.test)],
        "shape": dataset.contract.shape,
        "agreement": asdict(exported.agreement),
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "artifact_bytes": len(exported.artifact),
        "bytes_above_weights": len(exported.artifact) - weights,
        "functions": list_functions(profile),
    }


def export(folder: Path, mirrored: bool) -> tuple[Run, Dataset, Exported]:
    """Export a run; return it with its data and its artifact."""
    run = Run.open(folder)
    dataset = reload_data(run, None, None, SILENT)
    return run, dataset, export_run(run, dataset, mirrored)


def list_functions(profile: cProfile.Profile) -> list[dict[str, Any]]:
    """List the functions of this repository that took the longest, each with its calls and its seconds."""
    stats = pstats.Stats(profile).get_stats_profile()
    return [
        {"name": f"{place}.{name}", "calls": int(timing.ncalls.split("/")[0]), "profiled_s": timing.cumtime}
        for name, timing in sorted(stats.func_profiles.items(), key=lambda item: -item[1].cumtime)
        if timing.cumtime >= SHOWN * stats.total_tt and (place := describe_place(timing.file_name))
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
        print(f"{function['profiled_s']:7.2f} s {function['calls']:6} calls  {function['name']}")
    print(f"{result['wall_s']:7.2f} s, {result['cpu_s']:.2f} s CPU in all, of {result['images']} images")
    print(f"{result['artifact_bytes']:,} bytes, {result['bytes_above_weights']:,} more than the weights")
    write_result(arguments, result)


if __name__ == "__main__":
    main()
