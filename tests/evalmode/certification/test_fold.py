"""Folding batch norm keeps the outputs for every layer before it, and changes no other part of the graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from evalmode.certification.fold import fold_norms

CHANNELS = 3


def make_graph(kind: str, bias: bool = True, beta: float = 1.0, transposed: bool = True, extra: bool = False):
    """x -> convolution or dense layer -> batch norm -> y, random weights; ``extra`` makes ``between`` an output."""
    rng = np.random.default_rng(0)
    shape = (CHANNELS, 2, 3, 3) if kind == "Conv" else (CHANNELS, 4) if transposed else (4, CHANNELS)
    values = {
        "scale": rng.normal(1, 0.5, CHANNELS),
        "shift": rng.normal(0, 1, CHANNELS),
        "n.running_mean": rng.normal(0, 1, CHANNELS),
        "n.running_var": rng.uniform(0.1, 2, CHANNELS),
        "w": rng.normal(0, 1, shape),
    }
    if bias:
        values["b"] = rng.normal(0, 1, CHANNELS)
    options = {"pads": [1, 1, 1, 1]} if kind == "Conv" else {"transB": int(transposed), "beta": beta}
    nodes = [
        helper.make_node(kind, ["x", "w", *(["b"] if bias else [])], ["between"], **options),
        helper.make_node(
            "BatchNormalization", ["between", "scale", "shift", "n.running_mean", "n.running_var"], ["y"], epsilon=1e-3
        ),
    ]
    entry = ("batch", 2, 5, 5) if kind == "Conv" else ("batch", 4)
    out = ("batch", CHANNELS, 5, 5) if kind == "Conv" else ("batch", CHANNELS)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)]
    if extra:
        outputs.append(helper.make_tensor_value_info("between", TensorProto.FLOAT, out))
    graph = helper.make_graph(
        nodes,
        "fold",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, entry)],
        outputs,
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(graph: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shape = [4 if side == "batch" else side for side in session.get_inputs()[0].shape]
    output: np.ndarray = session.run(["y"], {"x": np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)})[0]
    return output


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "kind", [("Conv",), ("Gemm",), ("Gemm", 0.5), ("Gemm", 1.0, False)], ids=["conv", "dense", "beta", "not transposed"]
)
def test_the_folded_graph_computes_the_same_outputs(kind: tuple, bias: bool) -> None:
    name, *options = kind
    graph = make_graph(name, bias, *options)
    folded, norms = fold_norms(graph)
    assert [node.op_type for node in folded.graph.node] == [name]
    np.testing.assert_allclose(run(folded), run(graph), rtol=1e-6, atol=2e-6)
    assert [(norm.name, norm.tensor, norm.folded) for norm in norms] == [("n", "y", True)]


def test_the_original_graph_is_unchanged() -> None:
    graph = make_graph("Conv")
    before = graph.SerializeToString()
    fold_norms(graph)
    assert graph.SerializeToString() == before


def test_a_batch_norm_is_not_folded_if_its_input_is_an_output() -> None:
    graph = make_graph("Conv", extra=True)
    folded, norms = fold_norms(graph)
    assert [node.op_type for node in folded.graph.node] == ["Conv", "BatchNormalization"]
    assert [(norm.tensor, norm.folded) for norm in norms] == [("between", False)]


def test_weights_shared_with_another_layer_are_unchanged() -> None:
    graph = make_graph("Conv")
    graph.graph.node.append(helper.make_node("Conv", ["x", "w", "b"], ["other"], pads=[1, 1, 1, 1]))
    graph.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ("batch", CHANNELS, 5, 5)))
    folded, _ = fold_norms(graph)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in folded.graph.initializer}
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    assert np.array_equal(weights["w"], before["w"])
    assert list(folded.graph.node[-1].input) == ["x", "w", "b"]
    np.testing.assert_allclose(run(folded), run(graph), rtol=1e-6, atol=2e-6)


def test_folded_weights_are_rounded_once_from_float64() -> None:
    graph = make_graph("Conv", bias=False)
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in graph.graph.initializer}
    factor = values["scale"] / np.sqrt(values["n.running_var"] + np.float32(1e-3))
    folded, _ = fold_norms(graph)
    weights = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer}
    assert np.array_equal(weights["y.weight"], (values["w"] * factor[:, None, None, None]).astype(np.float32))


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_norm_between_pooling_and_a_dense_layer_is_folded_into_the_dense_layer(
    transposed: bool, bias: bool
) -> None:
    graph = make_head(transposed, bias)
    folded, norms = fold_norms(graph)
    assert [node.op_type for node in folded.graph.node] == ["ReduceMean", "Gemm"]
    np.testing.assert_allclose(run(folded), run(graph), rtol=1e-6, atol=2e-6)
    assert [(norm.name, norm.tensor, norm.folded) for norm in norms] == [("n", "pooled", False)]


def test_a_batch_norm_whose_output_is_used_twice_is_not_folded_into_the_dense_layer() -> None:
    graph = make_head(True, True)
    graph.graph.output.append(helper.make_tensor_value_info("normal", TensorProto.FLOAT, ("batch", CHANNELS)))
    assert fold_norms(graph)[0] == graph


def make_head(transposed: bool, bias: bool) -> onnx.ModelProto:
    """x -> mean of each channel -> batch norm -> dense layer -> y, random weights."""
    rng = np.random.default_rng(0)
    values = {
        "scale": rng.normal(1, 0.5, CHANNELS),
        "shift": rng.normal(0, 1, CHANNELS),
        "n.running_mean": rng.normal(0, 1, CHANNELS),
        "n.running_var": rng.uniform(0.1, 2, CHANNELS),
        "w": rng.normal(0, 1, (4, CHANNELS) if transposed else (CHANNELS, 4)),
        **({"b": rng.normal(0, 1, 4)} if bias else {}),
    }
    norm = ["pooled", "scale", "shift", "n.running_mean", "n.running_var"]
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["pooled"], keepdims=0),
        helper.make_node("BatchNormalization", norm, ["normal"], epsilon=1e-3),
        helper.make_node("Gemm", ["normal", "w", *(["b"] if bias else [])], ["y"], transB=int(transposed), alpha=0.5),
    ]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", CHANNELS, 5, 5))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 4))],
        [
            *(numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
