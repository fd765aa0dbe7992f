"""The 8-bit weights of networks with depthwise convolutions, and biases that make up for their rounding.

A depthwise filter has 9 or 25 weights. Their rounding errors do not cancel each other: they shift the mean of a
channel, and the shifts of all layers add up. The shift follows from the mean of the input, and is taken from the bias.
Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (1906.04721), section 4.2.

Processors without VNNI add two products of 8 bits in 16 bits, and clip the sum. ONNX Runtime's remedy are weights of
7 bits. The same sums cannot overflow if any two weights of a channel add up to at most 128: 255 * 128 < 2**15. Most
channels have few large weights, so this scale keeps more of the 8 bits, and the bits are equal on all processors.

Shapes: N images, C input channels, O output channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from evalmode.artifact.tensors import INPUT
from evalmode.images.pixels import Pixels
from evalmode.runtime.session import open_cpu_session

Doubles = npt.NDArray[np.float64]
LARGEST, PAIR = 127, 127.0  # of one weight, of two together; one less than 128, since each is rounded
SMALLEST = 1e-12  # of a scale: a channel may have no weights but 0


def has_depthwise(graph: onnx.ModelProto) -> bool:
    """Whether a graph has a depthwise convolution."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv" and node.input[1] in shapes]
    return any(_is_depthwise(node, shapes[node.input[1]]) for node in convolutions)


def round_weights(
    graph: onnx.ModelProto, batches: Iterable[Pixels], excluded: Collection[str] = ()
) -> tuple[onnx.ModelProto, dict[str, Doubles]]:
    """Round the weights of all convolutions to 8 bits, and correct their biases.

    Args:
        graph: A float32 graph, which is not changed.
        batches: Training images to measure the mean inputs of the layers, uint8 (N, H, W, C) each.
        excluded: Names of the convolutions that stay as they are.

    Returns:
        A float32 graph with rounded weights, and by the name of the weights the value of one step, (O,).
    """
    rounded = onnx.ModelProto()
    rounded.CopyFrom(graph)
    values = {tensor.name: tensor for tensor in rounded.graph.initializer}
    layers = [node for node in _list_layers(rounded.graph, values) if node.name not in excluded]
    means = _measure_means(graph, [node.input[0] for node in layers], batches)
    chosen: dict[str, Doubles] = {}
    for node in layers:
        weights = numpy_helper.to_array(values[node.input[1]]).astype(np.float64)
        scales = choose_scales(weights, _is_depthwise(node, weights.shape))
        steps = scales.reshape(-1, *[1] * (weights.ndim - 1))
        new = np.round(weights / steps) * steps
        shift = _sum_inputs(weights - new, means[node.input[0]], _get_groups(node))
        bias = numpy_helper.to_array(values[node.input[2]]).astype(np.float64)
        for name, value in ((node.input[1], new), (node.input[2], bias + shift)):
            values[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
        chosen[node.input[1]] = scales
    return rounded, chosen


def choose_scales(weights: Doubles, depthwise: bool) -> Doubles:
    """Choose the scale of each output channel.

    Args:
        weights: Of a convolution, (O, C, ...).
        depthwise: Whether each channel is a group of its own; ONNX Runtime adds such products in 32 bits.

    Returns:
        The value of one step, (O,).
    """
    sizes = np.sort(np.abs(weights).reshape(len(weights), -1), axis=1)
    scales = sizes[:, -1] / LARGEST
    if not depthwise and sizes.shape[1] > 1:
        scales = np.maximum(scales, (sizes[:, -1] + sizes[:, -2]) / PAIR)
    return np.maximum(scales, SMALLEST)


def _list_layers(graph: onnx.GraphProto, values: dict[str, onnx.TensorProto]) -> Iterator[onnx.NodeProto]:
    """List the convolutions whose weights and bias are initializers of their own."""
    used = [name for node in graph.node for name in node.input]
    for node in graph.node:
        own = len(node.input) > 2 and all(name in values and used.count(name) == 1 for name in node.input[1:])
        if node.op_type == "Conv" and own:
            yield node


def _measure_means(graph: onnx.ModelProto, tensors: list[str], batches: Iterable[Pixels]) -> dict[str, Doubles]:
    """Measure the mean of each channel of tensors, (C,) each, by name."""
    names = list(dict.fromkeys(tensors))
    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_cpu_session(exposed.SerializeToString())
    sums, count = [np.zeros(1)] * len(names), 0
    for batch in batches:
        count += len(batch)
        for index, seen in enumerate(session.run(None, {INPUT: batch})):
            sums[index] = sums[index] + seen.mean(axis=(2, 3), dtype=np.float64).sum(0)
    return {name: total / count for name, total in zip(names, sums, strict=True)}


def _sum_inputs(difference: Doubles, mean: Doubles, groups: int) -> Doubles:
    """Compute the mean output of a convolution with the weights ``difference``, (O,)."""
    kernels = difference.reshape(groups, len(difference) // groups, difference.shape[1], -1).sum(3)
    outputs: Doubles = np.einsum("goc,gc->go", kernels, mean.reshape(groups, -1)).ravel()
    return outputs


def _get_groups(node: onnx.NodeProto) -> int:
    return next((int(helper.get_attribute_value(one)) for one in node.attribute if one.name == "group"), 1)


def _is_depthwise(node: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether each channel of a convolution is a group of its own."""
    return 1 < _get_groups(node) == shape[0] and shape[1] == 1
