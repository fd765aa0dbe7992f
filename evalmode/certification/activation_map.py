"""The class activation map: where in the image the logits of a network come from.

A network that ends in global average pooling and a dense layer has an exact one: the dense layer, applied to every
position of the feature map. The mean of the map over its positions is the logit, since the dense layer is linear.
Source: Zhou et al., Learning Deep Features for Discriminative Localization (1512.04150).

Shapes: N images, D features, K labels, h and w positions of the feature map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from evalmode.artifact.tensors import ACTIVATION_MAP, LOGITS, Array

KEEPS_VALUES = ("Identity", "Flatten", "Reshape", "Squeeze", "Dropout")  # between the pooling and the dense layer


@dataclass(frozen=True)
class _Ending:
    """Global average pooling and a dense layer, whose output is the logits.

    Attributes:
        features: The name of the feature map, (N, D, h, w).
        weights: The name of the weights of the dense layer.
        transposed: Whether the weights are (K, D), rather than (D, K).
        bias: The name of its bias, (K,); "" if it has none.
        shape: The sides of the weights as a convolution: (K, D, 1, 1).
    """

    features: str
    weights: str
    transposed: bool
    bias: str
    shape: tuple[int, int, int, int]


def add_activation_map(graph: onnx.ModelProto) -> onnx.ModelProto | None:
    """Add the output ``activation_map``, float32 (N, K, h, w), to a graph.

    Args:
        graph: The graph of an artifact, its batch norms folded; it is not changed.

    Returns:
        A graph with the output; None if the network does not end in global average pooling and a dense layer.
    """
    ending = None if _uses_name(graph.graph) else _find_ending(graph.graph)
    sides = None if ending is None else _find_sides(graph, ending)
    if ending is None or sides is None:
        return None
    mapped = onnx.ModelProto()
    mapped.CopyFrom(graph)
    weights, shape = ending.weights, f"{ACTIVATION_MAP}.shape"
    if not ending.transposed:
        mapped.graph.node.append(helper.make_node("Transpose", [weights], [f"{ACTIVATION_MAP}.rows"], perm=[1, 0]))
        weights = f"{ACTIVATION_MAP}.rows"
    mapped.graph.initializer.append(numpy_helper.from_array(np.array(ending.shape, np.int64), shape))
    kernel = f"{ACTIVATION_MAP}.weight"
    inputs = [ending.features, kernel, *([ending.bias] if ending.bias else [])]
    mapped.graph.node.append(helper.make_node("Reshape", [weights, shape], [kernel]))  # no second copy in the file
    mapped.graph.node.append(helper.make_node("Conv", inputs, [ACTIVATION_MAP], kernel_shape=[1, 1]))
    batch = mapped.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    output = helper.make_tensor_value_info(ACTIVATION_MAP, TensorProto.FLOAT, (batch, ending.shape[0], *sides))
    mapped.graph.output.append(output)
    return mapped


def remove_activation_map(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph without the output ``activation_map`` and what only this output needs."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    for output in [one for one in bare.graph.output if one.name.startswith(ACTIVATION_MAP)]:
        bare.graph.output.remove(output)
    for weights in [one for one in bare.graph.initializer if one.name.startswith(ACTIVATION_MAP)]:
        bare.graph.initializer.remove(weights)
    for node in [node for node in bare.graph.node if node.output[0].startswith(ACTIVATION_MAP)]:
        bare.graph.node.remove(node)
    return bare


def find_feature_map(graph: onnx.ModelProto) -> str:
    """Return the name of the tensor that the activation map is computed from.

    Args:
        graph: A graph with the output ``activation_map``.
    """
    return str(next(node.input[0] for node in graph.graph.node if node.output[0] == ACTIVATION_MAP))


def _uses_name(graph: onnx.GraphProto) -> bool:
    """Whether a graph uses the name of the output for tensors of its own."""
    names = [tensor.name for tensor in graph.initializer] + [name for node in graph.node for name in node.output]
    return any(name.startswith(ACTIVATION_MAP) for name in names)


def _find_ending(graph: onnx.GraphProto) -> _Ending | None:
    """Find the pooling and the dense layer at the end of a graph, or None."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    dense = _skip(makers, LOGITS, ("Identity",))
    if dense is None or dense.op_type not in ("Gemm", "MatMul", "Add"):
        return None
    bias = ""
    if dense.op_type == "Add":
        bias = next((name for name in dense.input if name in values), "")
        dense = makers.get(next(name for name in dense.input if name != bias))
        if dense is None or dense.op_type != "MatMul" or not bias:
            return None
    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in dense.attribute}
    if dense.op_type == "Gemm" and len(dense.input) > 2:
        bias = dense.input[2]
    plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0 and not options.get("transA", 0)
    pool = _skip(makers, dense.input[0], KEEPS_VALUES)
    if not plain or dense.input[1] not in values or pool is None or not _averages(pool, values):
        return None
    transposed, weights = bool(options.get("transB", 0)), values[dense.input[1]]
    labels, features = weights.shape if transposed else weights.shape[::-1]
    if bias and (bias not in values or values[bias].shape != (labels,)):
        return None
    return _Ending(pool.input[0], dense.input[1], transposed, bias, (labels, features, 1, 1))


def _skip(makers: Mapping[str, onnx.NodeProto], name: str, operators: tuple[str, ...]) -> onnx.NodeProto | None:
    """Return the node that computes a tensor, apart from operators that keep the values."""
    node = makers.get(name)
    while node is not None and node.op_type in operators:
        node = makers.get(node.input[0])
    return node


def _averages(node: onnx.NodeProto, values: Mapping[str, Array]) -> bool:
    """Whether a node averages over the last two of four axes."""
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type != "ReduceMean":
        return False
    axes = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), None)
    if axes is None and len(node.input) > 1 and node.input[1] in values:
        axes = values[node.input[1]].tolist()
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


def _find_sides(graph: onnx.ModelProto, ending: _Ending) -> tuple[int, int] | None:
    """Return the height and width of the feature map; None if they are unknown or it has other features."""
    inferred = onnx.shape_inference.infer_shapes(graph)
    for value in inferred.graph.value_info:
        if value.name == ending.features:
            sides = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            if len(sides) == 4 and sides[1] == ending.shape[1] and min(sides[2:]) > 0:
                return sides[2], sides[3]
    return None
