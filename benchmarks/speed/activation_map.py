"""Measures what the optional output `activation_map` costs: when it is not requested, and when it is.

    python -m benchmarks.speed.activation_map MODEL.onnx [--rounds 200] [--out FILE]

MODEL.onnx is an artifact with the output. Three sessions take turns on one image and one thread: the graph without the
output, the artifact as a server loads it and asks for labels, and the artifact asked for the map, too. A node profile
of onnxruntime says which nodes ran for the output when it was not requested: without splitting the graph it would be
the whole of it, since official builds ignore ``RunOptions.only_execute_path_to_fetches``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import add_out, write_result
from evalmode.artifact.sealing import open_artifact
from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT, LOGITS, PROBABILITIES
from evalmode.certification.activation_map import remove_activation_map
from evalmode.runtime.loading import load_artifact
from evalmode.runtime.session import make_session_options, open_cpu_session, ort

OUTPUTS = [PROBABILITIES, LOGITS]


def profile_nodes(artifact: bytes, images: Any, only_path: bool) -> list[str]:
    """List the nodes of the map that onnxruntime runs when the map is not requested, without splitting the graph."""
    options = make_session_options(1)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
        run_options = ort.RunOptions()
        run_options.only_execute_path_to_fetches = only_path
        session.run(OUTPUTS, {INPUT: images}, run_options)
        events = json.loads(Path(session.end_profiling()).read_text())
    return sorted(
        {
            event["name"]
            for event in events
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and ACTIVATION_MAP in str(event)
        }
    )


def main() -> None:
    """Print median and smallest times in turns, and the nodes of the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    add_out(parser, required=False)
    arguments = parser.parse_args()
    artifact = arguments.model.read_bytes()
    graph, manifest = open_artifact(artifact)
    model = load_artifact(artifact)
    assert manifest.certificate is not None
    images = np.asarray(manifest.certificate.inputs[INPUT])[:1]
    bare = open_cpu_session(remove_activation_map(graph).SerializeToString())
    ways: dict[str, Callable[[], Any]] = {
        "without the output in the graph": lambda: bare.run(OUTPUTS, {INPUT: images}),
        "not requested": lambda: model.run({INPUT: images}),
        "requested": lambda: model.run({INPUT: images}, optional=[ACTIVATION_MAP]),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            times[way].append(1e3 * (time.perf_counter() - started))
    figures = {way: {"median_ms": statistics.median(taken), "min_ms": min(taken)} for way, taken in times.items()}
    nodes = {str(only_path): profile_nodes(artifact, images, only_path) for only_path in (False, True)}
    for way, one in figures.items():
        print(f"{way:32} median {one['median_ms']:6.2f} ms, smallest {one['min_ms']:6.2f} ms")
    for only_path, ran in nodes.items():
        print(f"unsplit, only_execute_path_to_fetches={only_path}: nodes of the map that ran: {ran or 'none'}")
    write_result(arguments, {"ways": figures, "nodes_by_only_path": nodes})


if __name__ == "__main__":
    main()
