"""Fold batch norm into the convolution or dense layer before it, or into the dense layer after it.

One operation fewer, the same answers.

Computed in float64 and rounded once. Exporters fold in float32, and some have had bugs; the export compares the result
with the graph before folding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Doubles = npt.NDArray[np.float64]

FOLDABLE = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class Norm:
    """A batch norm layer of an artifact: its statistics, and where in the graph they apply.

    Attributes:
        name: The layer's name in the network.
        tensor: The name of the layer's input in the graph, or of its output once it is part of the layer before it.
        folded: Whether it is part of the layer before it. If it is part of the layer after it, its input stays.
        mean: The mean of each channel of its input, over the training images.
        variance: Likewise.
        scale: The factor of the normalised value, one for each channel.
        shift: Added to it, likewise.
        epsilon: Added to the variance.
    """

    name: str
    tensor: str
    folded: bool
    mean: list[float]
    variance: list[float]
    scale: list[float]
    shift: list[float]
    epsilon: float

    def to_json(self) -> dict[str, Any]:
        """Convert it to JSON values; floats have the fewest digits that give the same float32."""
        return {name: _shorten(value) if isinstance(value, list) else value for name, value in asdict(self).items()}

    def to_name(self) -> dict[str, Any]:
        """Convert it to JSON values without its statistics: those that training did not change are in the weights."""
        return {"name": self.name, "frozen": True}


def _shorten(values: list[float]) -> list[float]:
    return [float(str(np.float32(value))) for value in values]


def fold_norms(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Norm]]:
    """Fold every batch norm that directly follows a convolution or dense layer, or directly precedes a dense layer.

    Args:
        graph: A graph in eval mode, which is not changed.

    Returns:
        The folded graph, and every batch norm whose statistics are initializers, folded or not.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(graph)
    values = {tensor.name: tensor for tensor in folded.graph.initializer}
    makers = {node.output[0]: node for node in folded.graph.node}
    readers = Counter(name for node in folded.graph.node for name in node.input)
    readers.update(output.name for output in folded.graph.output)
    norms = []
    for node in [node for node in folded.graph.node if node.op_type == "BatchNormalization"]:
        if not all(name in values for name in node.input[1:5]):
            continue  # computed in the graph, by a parametrization for example
        before = makers.get(node.input[0])
        fits = (
            before is not None
            and before.op_type in FOLDABLE
            and readers[node.input[0]] == 1
            and all(name in values for name in before.input[1:] if name)  # not computed, by weight norm for example
        )
        norms.append(_describe(node, fits, values))
        if before is not None and fits:
            _fold(folded.graph, before, node, values)
        elif (after := _find_dense(folded.graph, node, values)) is not None and readers[node.output[0]] == 1:
            _fold_forward(folded.graph, node, after, values)
    return folded, norms


def _find_dense(
    graph: onnx.GraphProto, norm: onnx.NodeProto, values: dict[str, onnx.TensorProto]
) -> onnx.NodeProto | None:
    """Find the dense layer whose input a batch norm normalises; its weights and its bias are initializers."""
    for node in graph.node:
        constant = all(name in values for name in node.input[1:] if name)
        if node.op_type == "Gemm" and node.input[0] == norm.output[0] and constant:
            return None if _attribute(node, "transA", 0) else node
    return None


def _fold_forward(
    graph: onnx.GraphProto, norm: onnx.NodeProto, after: onnx.NodeProto, values: dict[str, onnx.TensorProto]
) -> None:
    """Merge ``norm`` into ``after``, the dense layer that reads its output."""
    scale, shift, mean, variance = (_read(values[name]) for name in norm.input[1:5])
    factor = scale / np.sqrt(variance + _epsilon(norm))
    transposed = bool(_attribute(after, "transB", 0))
    weights = _read(values[after.input[1]])
    rows = weights if transposed else weights.T  # (outputs, inputs)
    bias = _attribute(after, "alpha", 1.0) * (rows @ (shift - mean * factor))
    if len(after.input) > 2 and after.input[2]:
        bias = bias + _read(values[after.input[2]]) * _beta(after)
    scaled = rows * factor
    _replace(
        graph, after, f"{after.output[0]}.normalised", {"weight": scaled if transposed else scaled.T, "bias": bias}
    )
    after.input[0] = norm.input[0]
    graph.node.remove(norm)


def _fold(
    graph: onnx.GraphProto, before: onnx.NodeProto, norm: onnx.NodeProto, values: dict[str, onnx.TensorProto]
) -> None:
    """Merge ``norm`` into ``before``, the layer whose output it normalises."""
    scale, shift, mean, variance = (_read(values[name]) for name in norm.input[1:5])
    factor = scale / np.sqrt(variance + _epsilon(norm))
    weights = _read(values[before.input[1]])
    bias = _read(values[before.input[2]]) if len(before.input) > 2 and before.input[2] else np.zeros_like(mean)
    new = {
        "weight": _multiply(weights, factor, before),
        "bias": (bias * _beta(before) - mean) * factor + shift,
    }
    _replace(graph, before, norm.output[0], new)
    before.output[0] = norm.output[0]
    graph.node.remove(norm)


def _replace(graph: onnx.GraphProto, node: onnx.NodeProto, prefix: str, new: dict[str, Doubles]) -> None:
    """Give a layer new weights and a new bias, rounded to float32."""
    for place, (kind, value) in enumerate(new.items(), 1):
        name = f"{prefix}.{kind}"  # new names: another layer may share the old weights
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        if place < len(node.input):
            node.input[place] = name
        else:
            node.input.append(name)
    for attribute in node.attribute:
        if attribute.name == "beta":
            attribute.f = 1.0


def _multiply(weights: Doubles, factor: Doubles, node: onnx.NodeProto) -> Doubles:
    """Multiply the weights of each of a layer's outputs by its factor."""
    if node.op_type == "ConvTranspose":  # axes: inputs of all groups, outputs of one group
        groups = int(_attribute(node, "group", 1))
        apart = weights.reshape(groups, -1, *weights.shape[1:])
        return (apart * factor.reshape(groups, 1, -1, *[1] * (weights.ndim - 2))).reshape(weights.shape)
    outputs = 0 if node.op_type == "Conv" or _attribute(node, "transB", 0) else 1
    return weights * np.expand_dims(factor, [axis for axis in range(weights.ndim) if axis != outputs])


def _beta(node: onnx.NodeProto) -> float:
    """The factor of a dense layer's bias, ``beta`` of Gemm."""
    return _attribute(node, "beta", 1.0)


def _epsilon(norm: onnx.NodeProto) -> float:
    return _attribute(norm, "epsilon", 1e-5)


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    return next((float(helper.get_attribute_value(a)) for a in node.attribute if a.name == name), default)


def _describe(norm: onnx.NodeProto, folded: bool, values: dict[str, onnx.TensorProto]) -> Norm:
    scale, shift, mean, variance = (_read(values[name]).tolist() for name in norm.input[1:5])
    name = norm.input[3].removesuffix(".running_mean")
    tensor = norm.output[0] if folded else norm.input[0]
    return Norm(name, tensor, folded, mean, variance, scale, shift, _epsilon(norm))


def _read(tensor: onnx.TensorProto) -> Doubles:
    return numpy_helper.to_array(tensor).astype(np.float64)
