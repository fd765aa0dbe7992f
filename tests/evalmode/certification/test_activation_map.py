"""The activation map is added where a graph ends in global average pooling and a dense layer, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT, LOGITS
from evalmode.certification.activation_map import add_activation_map, find_feature_map, remove_activation_map
from evalmode.runtime.session import open_cpu_session

FEATURES, LABELS, SIDE = 5, 3, 4


def make_graph(dense: str = "Gemm", pool: str = "GlobalAveragePool", **options: object) -> onnx.ModelProto:
    """Build image -> floats -> convolution -> pooling -> dense layer -> logits, with random weights."""
    rng = np.random.default_rng(0)
    shape = (LABELS, FEATURES) if options.get("transB") else (FEATURES, LABELS)
    values = {
        "kernel": rng.normal(0, 0.1, (FEATURES, 3, 1, 1)).astype(np.float32),
        "weights": rng.normal(0, 1, shape).astype(np.float32),
        "bias": rng.normal(0, 1, LABELS).astype(np.float32),
        "axes": np.array(options.pop("axes", [-1, -2])),
    }
    kept = int(str(options.pop("keepdims", 1)))
    pooling = (
        helper.make_node("ReduceMean", ["features", "axes"], ["pooled"], keepdims=kept)
        if pool == "ReduceMean"
        else helper.make_node(pool, ["features"], ["pooled"])
    )
    flatten = helper.make_node("Flatten" if kept else "Identity", ["pooled"], ["row"])
    if dense == "Gemm":
        last = [helper.make_node("Gemm", ["row", "weights", "bias"], [LOGITS], **options)]  # type: ignore[arg-type]
    else:
        last = [
            helper.make_node("MatMul", ["row", "weights"], ["product"]),
            helper.make_node("Add", ["bias", "product"], [LOGITS]),
        ]
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["features"]),
        pooling,
        flatten,
        *last,
    ]
    graph = helper.make_graph(
        nodes,
        "map",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ("batch", SIDE, SIDE + 1, 3))],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ("batch", LABELS))],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transB": 1},
        {"dense": "MatMul"},
        {"pool": "ReduceMean"},
        {"pool": "ReduceMean", "keepdims": 0, "axes": [3, 2]},
    ],
    ids=str,
)
def test_the_map_applies_the_dense_layer_to_each_position(options: dict[str, object]) -> None:
    mapped = add_activation_map(make_graph(**options))  # type: ignore[arg-type]
    assert mapped is not None
    onnx.checker.check_model(mapped, full_check=True)
    mapped.graph.output.append(onnx.ValueInfoProto(name=find_feature_map(mapped)))
    images = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE + 1, 3)).astype(np.uint8)
    logits, maps, features = open_cpu_session(mapped.SerializeToString()).run(None, {INPUT: images})
    values = {one.name: numpy_helper.to_array(one) for one in mapped.graph.initializer}
    weights = values["weights"].T if "transB" in options else values["weights"]
    expected = np.einsum("ndhw,dk->nkhw", features, weights) + values["bias"][:, None, None]
    assert maps.shape == (2, LABELS, SIDE, SIDE + 1)
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "GlobalMaxPool"},
        {"pool": "ReduceMean", "axes": [2], "keepdims": 0},
        {"alpha": 2.0},
        {"beta": 0.5},
    ],
    ids=str,
)
def test_other_endings_have_no_map(options: dict[str, object]) -> None:
    assert add_activation_map(make_graph(**options)) is None  # type: ignore[arg-type]


def test_a_graph_that_uses_the_name_has_no_map() -> None:
    graph = make_graph()
    graph.graph.node[2].output[0] = graph.graph.node[3].input[0] = ACTIVATION_MAP
    assert add_activation_map(graph) is None


def test_removing_the_map_restores_the_graph() -> None:
    graph = make_graph()
    mapped = add_activation_map(graph)
    assert mapped is not None
    assert mapped != graph
    assert remove_activation_map(mapped) == graph
