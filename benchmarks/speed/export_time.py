"""Times the export of a run, stage by stage, and measures how much larger the artifact is than its weights.

    python -m benchmarks.speed.export_time RUN [--mirrored] [--out FILE]

RUN is a run folder that ``evalmode train`` wrote. Each function of the export is timed from outside; a stage contains
the stages that are indented below it. `cpu_s` counts all threads. Reading the data comes first, as in
``evalmode export``.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from training.torch_runtime import import_torch

STAGES = {
    "training.loading": ("reload_data",),
    "training.export": (
        *("_load_network", "predict_logits", "expect_answers", "export_network", "fold_norms", "check_fold"),
        *("run_all", "measure_agreement", "check_moments", "describe_pixels", "describe_images"),
        *("_add_map", "measure_quality", "certify"),
    ),
    "training.agreement": ("_measure_rounding",),
    "evalmode.certification.certify": ("encode_golden", "encode_some", "seal", "load_artifact"),
    "evalmode.certification.runs": ("compare_batches",),
}


@dataclass
class Stage:
    """A call of a function of the export."""

    depth: int
    name: str
    wall_s: float
    cpu_s: float


def watch(module: Any, name: str, stages: list[Stage], depth: list[int]) -> Callable[..., Any]:
    """Wrap a function so that each call is recorded."""
    called = getattr(module, name)

    @functools.wraps(called)
    def timed(*arguments: Any, **options: Any) -> Any:
        stage = Stage(depth[0], f"{module.__name__}.{name}", 0.0, 0.0)
        stages.append(stage)
        depth[0] += 1
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return called(*arguments, **options)
        finally:
            depth[0] -= 1
            stage.wall_s, stage.cpu_s = time.perf_counter() - wall, time.process_time() - cpu

    return timed


def measure(folder: Path, mirrored: bool) -> dict[str, Any]:
    """Export a run, and time each stage."""
    import importlib

    import_torch()
    from training.callbacks import SILENT
    from training.run import Run

    stages: list[Stage] = []
    depth = [0]
    started, cpu = time.perf_counter(), time.process_time()
    with ExitStack() as stack:
        for module_name, names in STAGES.items():
            module = importlib.import_module(module_name)
            for name in names:
                stack.enter_context(patch.object(module, name, watch(module, name, stages, depth)))
        loading, export = (importlib.import_module(f"training.{name}") for name in ("loading", "export"))
        run = Run.open(folder)
        dataset = loading.reload_data(run, None, None, SILENT)
        exported = export.export_run(run, dataset, mirrored)
    weights = sum(value.numel() * value.element_size() for value in run.config.build_network().parameters())
    return {
        "images": [len(split.images) for split in (dataset.train, dataset.val, dataset.test)],
        "shape": dataset.contract.shape,
        "agreement": asdict(exported.agreement),
        "wall_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "artifact_bytes": len(exported.artifact),
        "bytes_above_weights": len(exported.artifact) - weights,
        "stages": [asdict(stage) for stage in stages],
    }


def main() -> None:
    """Print the stages, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--mirrored", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.run, arguments.mirrored)
    for stage in result["stages"]:
        print(f"{stage['wall_s']:7.2f} s {stage['cpu_s']:7.2f} s CPU  {'  ' * stage['depth']}{stage['name']}")
    print(f"{result['wall_s']:7.2f} s {result['cpu_s']:7.2f} s CPU  in all, of {result['images']} images")
    print(f"{result['artifact_bytes']:,} bytes, {result['bytes_above_weights']:,} more than the weights")
    if arguments.out:
        from evalmode.files import write_atomically

        write_atomically(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
