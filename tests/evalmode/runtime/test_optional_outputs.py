"""Optional outputs: what only they need is not part of the session that every request runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.parts import split_graph
from evalmode.artifact.sealing import open_artifact, seal
from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT, LOGITS, PROBABILITIES
from evalmode.errors import ArtifactInvalid, ReplayMismatch
from evalmode.runtime.loading import LoadOptions, load_artifact
from evalmode.runtime.model import ImageClassifier
from evalmode.runtime.optional_outputs import open_optional
from evalmode.runtime.session import open_cpu_session
from evalmode.runtime.tensor import Tensor
from tests.conftest import map_artifact, map_graph

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)


def test_the_first_part_computes_nothing_for_the_optional_outputs() -> None:
    parts = split_graph(map_graph(), (ACTIVATION_MAP,))
    first = onnx.load_from_string(parts.write_first()).graph
    assert [node.op_type for node in first.node] == ["Cast", "ReduceMean", "Div", "Softmax"]
    assert [output.name for output in first.output] == [PROBABILITIES, LOGITS, "floats"]
    assert ([node.op_type for node in parts.second], parts.shared) == (["Transpose", "Div"], ("floats",))


def test_outputs_are_those_of_the_whole_graph(mapped: ImageClassifier) -> None:
    names = [PROBABILITIES, LOGITS, ACTIVATION_MAP]
    whole = open_cpu_session(map_graph().SerializeToString()).run(names, {INPUT: IMAGES})
    answer = mapped.run({INPUT: IMAGES}, (ACTIVATION_MAP,))
    assert list(answer) == names
    assert [answer[name].tobytes() for name in names] == [array.tobytes() for array in whole]
    assert list(mapped.run({INPUT: IMAGES})) == names[:2]


def test_descriptions_of_outputs_do_not_name_the_tensors_that_the_parts_share(mapped: ImageClassifier) -> None:
    assert [output.name for output in mapped.outputs] == [PROBABILITIES, LOGITS]
    [described] = mapped.optional.tensors
    assert described == Tensor(ACTIVATION_MAP, np.dtype(np.float32), (3, 4, 4))


def graph_of(nodes: list[onnx.NodeProto], *outputs: str) -> onnx.ModelProto:
    """A graph of x, float32 (N, 3)."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 3)) for name in ("x", *outputs)]
    constants = [numpy_helper.from_array(np.array(2, np.float32), "two"), numpy_helper.from_array(np.array(True), "go")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def inner_graph(node: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(
        [node], "inner", [], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)]
    )


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Mul", "x two", "a"), ("Mul", "a two", "y"), ("Neg", "y", "z")], -4),  # from a required output
        ([("Mul", "x two", "z"), ("Mul", "z two", "y")], 2),  # on the way to a required output
        ([("Mul", "x two", "y"), ("Neg", "x", "z")], -1),  # from the input
        ([("Mul", "x two", "a"), ("Mul", "a two", "y"), ("Add", "a x", "b"), ("Add", "b y", "z")], 7),
    ],
)
def test_an_optional_output_may_be_computed_from_anything(nodes: list[tuple[str, str, str]], expected: float) -> None:
    graph = graph_of([helper.make_node(kind, inputs.split(), [output]) for kind, inputs, output in nodes], "y", "z")
    assert compute(graph)["z"].tolist() == [[expected, 2 * expected, 3 * expected]]


def test_nodes_inside_others_use_tensors_of_the_first_part() -> None:
    added, multiplied = (inner_graph(helper.make_node(kind, ["a", "two"], [kind])) for kind in ("Add", "Mul"))
    graph = graph_of(
        [
            helper.make_node("Mul", ["x", "two"], ["a"]),
            helper.make_node("Mul", ["a", "two"], ["y"]),
            helper.make_node("If", ["go"], ["z"], then_branch=added, else_branch=multiplied),
        ],
        "y",
        "z",
    )
    assert compute(graph)["z"].tolist() == [[4, 6, 8]]


def compute(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The optional output z for [1, 2, 3]."""
    onnx.checker.check_model(graph, full_check=True)
    parts = split_graph(graph, ("z",))
    session = open_cpu_session(parts.write_first())
    optional = open_optional(parts, session, open_cpu_session)
    inputs = {"x": np.array([[1, 2, 3]], np.float32)}
    names = [output.name for output in session.get_outputs()]
    assert names == ["y", *optional.shared]
    return dict(optional.compute(inputs, dict(zip(names, session.run(names, inputs), strict=True))))


@pytest.mark.parametrize("names", [("absent",), (PROBABILITIES, LOGITS, ACTIVATION_MAP)])
def test_names_that_the_graph_lacks_or_that_leave_nothing_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ArtifactInvalid, match=r"its optional outputs are .*, its outputs probabilities, logits"):
        split_graph(map_graph(), names)


def test_the_replay_compares_optional_outputs_with_the_certificate() -> None:
    graph, manifest = open_artifact(map_artifact())
    assert isinstance(manifest, ClassifierManifest)
    assert manifest.certificate
    assert ACTIVATION_MAP in manifest.certificate.optional
    [shifted] = [node for node in graph.graph.node if node.output[0] == ACTIVATION_MAP]
    shifted.op_type = "Mul"
    with pytest.raises(ReplayMismatch, match=ACTIVATION_MAP):
        load_artifact(seal(graph, manifest))


def test_an_uncertified_file_runs_its_optional_outputs_at_load() -> None:
    graph, manifest = open_artifact(map_artifact())
    assert isinstance(manifest, ClassifierManifest)
    uncertified = replace(manifest, certificate=None)
    loaded = load_artifact(seal(graph, uncertified), options=LoadOptions(allow_uncertified=True))
    assert loaded.run({INPUT: IMAGES}, (ACTIVATION_MAP,))[ACTIVATION_MAP].shape == (3, 3, 4, 4)
