"""A model file opens no other file, and is the same network for every reader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from evalmode.artifact.sealing import check_operators, open_artifact
from evalmode.artifact.tensors import INPUT, PROBABILITIES
from evalmode.certification.verdicts import examine
from evalmode.errors import OperatorNotAllowed
from evalmode.runtime.loading import load_artifact
from evalmode.runtime.session import open_cpu_session
from tests.conftest import colour_artifact, colour_graph
from tests.hostile import PLACES, external_data, mutate, two_networks

MUTATIONS = 250
LOAD_MUTATIONS = """
import sys
import numpy as np
from evalmode.errors import ArtifactInvalid
from evalmode.runtime.loading import load_artifact
from evalmode.runtime.session import open_cpu_session
from tests.hostile import mutate

def on_event(event, arguments):
    if event == "open" and "outside.bin" in str(arguments[0]):
        print("opened", arguments, flush=True)

sys.addaudithook(on_event)
rng = np.random.default_rng(0)
for number in range(int(sys.argv[1])):
    path, artifact = mutate(rng, "outside.bin")
    print(">".join(path))
    try:
        load_artifact(artifact)
        print("loaded")
    except ArtifactInvalid:
        pass
"""


def test_no_mutation_opens_a_file(tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(b"\0" * 16)
    command = [sys.executable, "-c", LOAD_MUTATIONS, str(MUTATIONS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == MUTATIONS, [line for line in lines if line.startswith(("opened", "loaded"))]
    ends = {tuple(line.split(">")[-1:]) for line in lines}
    assert ends == {(field,) for _, field in PLACES}  # includes places in later versions of onnx


@pytest.mark.parametrize("seed", range(3))
def test_check_rejects_external_data_and_runs_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalmode.certification.verdicts.open_runs", None)
    verdicts = examine(mutate(np.random.default_rng(seed), "secret")[1])
    assert [verdict.passed for verdict in verdicts if verdict.check == "operators"] == [False]


@pytest.mark.parametrize("how", ["secret", "./secret", "absolute"])
def test_onnxruntime_cannot_open_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A second protection, in case that the check of evalmode misses a reference to a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(b"1234")
    artifact = external_data(str(tmp_path / "secret") if how == "absolute" else how)
    with pytest.raises(Exception, match="xternal"):
        open_cpu_session(artifact)


def test_an_external_location_of_stored_weights_is_rejected() -> None:
    graph = onnx.load_model_from_string(colour_artifact())
    graph.graph.initializer[0].external_data.add(key="location", value="secret")  # data_location is unset
    with pytest.raises(OperatorNotAllowed, match="weights in another file are not allowed: "):
        check_operators(graph)


def test_a_field_unknown_to_the_installed_onnx_is_rejected() -> None:
    """A newer onnxruntime may know it."""
    graph = onnx.ModelProto.FromString(colour_graph().SerializeToString() + b"\xba\x3e\x01x")  # field 999
    with pytest.raises(OperatorNotAllowed, match=r"ModelProto has field 999, which onnx [\d.]+ does not know"):
        check_operators(graph)


def test_the_loaded_network_is_the_checked_one_if_a_file_contains_two() -> None:
    other = colour_graph()
    (scale,) = (weights for weights in other.graph.initializer if weights.name == "scale")
    scale.CopyFrom(numpy_helper.from_array(np.array(-1, np.float32), "scale"))
    artifact = two_networks(other)
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[..., 0] = 255
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    # Without the session options of evalmode, onnxruntime loads the other network.
    assert session.run([PROBABILITIES], {INPUT: image})[0].argmin() == 0
    open_artifact(artifact)
    assert load_artifact(artifact).run({INPUT: image})[PROBABILITIES].argmax() == 0


def test_the_ort_format_of_onnxruntime_is_rejected(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "network.ort")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(colour_graph().SerializeToString(), options, providers=["CPUExecutionProvider"])
    ort = (tmp_path / "network.ort").read_bytes()
    onnxruntime.InferenceSession(ort, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="protobuf parsing failed"):
        open_cpu_session(ort)


def test_an_external_tensor_in_a_subgraph_is_detected() -> None:
    inner = onnx.helper.make_graph([], "inner", [], [], [TensorProto(name="deep", data_location=TensorProto.EXTERNAL)])
    graph = colour_graph()
    graph.graph.node[0].attribute.append(onnx.helper.make_attribute("body", inner))
    with pytest.raises(OperatorNotAllowed, match="deep"):
        check_operators(graph)
