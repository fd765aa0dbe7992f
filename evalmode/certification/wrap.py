"""Build the graph of an artifact around another tool's network: preprocessing before it, softmax behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from evalmode.artifact.tensors import INPUT, LOGITS, PROBABILITIES
from evalmode.certification.inputs import ImageInput
from evalmode.certification.onnx_files import BATCH

INNER = "network_"  # the prefix of every name of the wrapped graph
SMALLEST = 1e-12  # probabilities are raised to it: 0 has no logarithm


@dataclass(frozen=True)
class Transform:
    """What is done to pixels x in 0..255: ``x * scale + shift``.

    Attributes:
        bgr: Whether the channels are put in the order blue, green, red first.
        scale: One factor, or one for each channel in the network's order.
        shift: Likewise.
    """

    bgr: bool
    scale: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True)
class Scores:
    """The output of a network that has a value for each label.

    Attributes:
        name: The name in the graph.
        labels: K.
        probabilities: Whether the values are probabilities, rather than logits.
    """

    name: str
    labels: int
    probabilities: bool


def wrap(graph: onnx.ModelProto, image: ImageInput, transform: Transform, scores: Scores) -> onnx.ModelProto:
    """Give a network the inputs and outputs of an artifact.

    Args:
        graph: Another tool's network.
        image: Its input.
        transform: What is done to pixels.
        scores: Its output, (N, K) or (N, K, 1, 1).

    Returns:
        A graph that takes uint8 (N, H, W, C) and returns probabilities and logits, float32 (N, K). If the network
        returns probabilities, their logarithms serve as logits.
    """
    inner = onnx.ModelProto()
    inner.CopyFrom(graph)
    del inner.metadata_props[:]
    del inner.graph.value_info[:]  # may hold another batch size
    for output in [output for output in inner.graph.output if output.name != scores.name]:
        inner.graph.output.remove(output)
    for value in (*inner.graph.input, *inner.graph.output):
        if value.name in (image.name, scores.name) and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    input_type = next(value.type.tensor_type.elem_type for value in inner.graph.input if value.name == image.name)
    output_type = next(value.type.tensor_type for value in inner.graph.output if value.name == scores.name)
    flat = len(output_type.shape.dim) == 2
    inner = compose.add_prefix(inner, INNER)
    before = _build_before(image, transform, input_type)
    after = _build_after(scores, output_type.elem_type, flat)
    joined = compose.merge_graphs(before, inner.graph, [("ready", INNER + image.name)])
    joined = compose.merge_graphs(joined, after, [(INNER + scores.name, "scores")])
    return helper.make_model(joined, opset_imports=inner.opset_import, ir_version=inner.ir_version)


def _build_before(image: ImageInput, transform: Transform, elem_type: int) -> onnx.GraphProto:
    """From uint8 (N, H, W, C) to the network's input."""
    height, width, channels = image.contract.shape
    order = [2, 1, 0] if transform.bgr else list(range(channels))
    constants: dict[str, npt.NDArray[Any]] = {
        "scale": np.array(transform.scale, np.float32),
        "shift": np.array(transform.shift, np.float32),
        "order": np.array(order, np.int64),
    }
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["floats", "order"], ["ordered"], axis=3),
        helper.make_node("Mul", ["ordered", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted" if elem_type == TensorProto.FLOAT else "exact"]),
    ]
    if elem_type != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", ["exact"], ["shifted"], to=elem_type))
    match image.layout:
        case "NCHW":
            nodes.append(helper.make_node("Transpose", ["shifted"], ["ready"], perm=[0, 3, 1, 2]))
            shape: tuple[int, ...] = (channels, height, width)
        case "flat":
            constants["row"] = np.array([-1, height * width * channels], np.int64)
            nodes.append(helper.make_node("Reshape", ["shifted", "row"], ["ready"]))
            shape = (height * width * channels,)
        case _:
            nodes.append(helper.make_node("Identity", ["shifted"], ["ready"]))
            shape = image.contract.shape
    return helper.make_graph(
        nodes,
        "evalmode",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, (BATCH, *image.contract.shape))],
        [helper.make_tensor_value_info("ready", elem_type, (BATCH, *shape))],
        [numpy_helper.from_array(value, constant) for constant, value in constants.items()],
    )


def _build_after(output: Scores, elem_type: int, flat: bool) -> onnx.GraphProto:
    """From scores of a type, (N, K) if flat and else (N, K, 1, 1), to probabilities and logits, float32 (N, K)."""
    nodes, scores = [], "scores"
    if elem_type != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [scores], ["float_scores"], to=TensorProto.FLOAT))
        scores = "float_scores"
    if not flat:
        nodes.append(helper.make_node("Flatten", [scores], ["rows"], axis=1))
        scores = "rows"
    constants = []
    if output.probabilities:
        nodes.append(helper.make_node("Max", [scores, "least"], ["positive"]))
        nodes.append(helper.make_node("Log", ["positive"], [LOGITS]))
        constants = [numpy_helper.from_array(np.array(SMALLEST, np.float32), "least")]
    else:
        nodes.append(helper.make_node("Identity", [scores], [LOGITS]))
    nodes.append(helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1))  # before opset 11 no -1
    shape = (BATCH, output.labels)
    return helper.make_graph(
        nodes,
        "evalmode",
        [helper.make_tensor_value_info("scores", elem_type, shape if flat else None)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (PROBABILITIES, LOGITS)],
        constants,
    )
