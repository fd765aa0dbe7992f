"""Build the graph of an artifact around another tool's network: preprocessing before it, softmax behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from evalmode.artifact.tensors import INPUT, LOGITS, PROBABILITIES
from evalmode.certification.adapt import drop_unused
from evalmode.certification.inputs import ImageInput
from evalmode.certification.onnx_files import BATCH

INNER = "network_"  # the prefix of every name of the wrapped graph
Kind = Literal["logits", "probabilities", "shares", "second logit", "second probability"]
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
        kind: What the values are. "logits" of K labels; their "probabilities"; "shares", values from 0 that become
            probabilities when they are divided by their sum; or of two labels one value, the "second logit", of the
            second label against the first, or the "second probability".
    """

    name: str
    labels: int
    kind: Kind = "logits"


def wrap(graph: onnx.ModelProto, image: ImageInput, transform: Transform, scores: Scores) -> onnx.ModelProto:
    """Give a network the inputs and outputs of an artifact. Parts that its scores do not depend on are left out.

    Args:
        graph: Another tool's network.
        image: Its input.
        transform: What is done to pixels.
        scores: Its output, (N, K) or (N, K, 1, 1); for one value of two labels (N, 1) or (N,).

    Returns:
        A graph that takes uint8 (N, H, W, C) and returns probabilities and logits, float32 (N, K). If the network
        returns probabilities or shares, their logarithms serve as logits.
    """
    inner = onnx.ModelProto()
    inner.CopyFrom(graph)
    del inner.metadata_props[:]
    del inner.graph.value_info[:]  # may hold another batch size
    for output in [output for output in inner.graph.output if output.name != scores.name]:
        inner.graph.output.remove(output)
    drop_unused(inner.graph)
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
    values: dict[str, npt.NDArray[Any]] = {}
    match output.kind:
        case "logits":
            nodes.append(helper.make_node("Identity", [scores], [LOGITS]))
        case "second logit":
            values = {"nothing": np.zeros(1, np.float32)}
            nodes.append(helper.make_node("Mul", [scores, "nothing"], ["first"]))
            nodes.append(helper.make_node("Concat", ["first", scores], [LOGITS], axis=1))
        case kind:
            if kind == "second probability":
                values = {"whole": np.ones(1, np.float32)}
                nodes.append(helper.make_node("Sub", ["whole", scores], ["first"]))
                nodes.append(helper.make_node("Concat", ["first", scores], ["both"], axis=1))
                scores = "both"
            values |= {"least": np.array(SMALLEST, np.float32)}
            nodes.append(helper.make_node("Max", [scores, "least"], ["positive"]))
            nodes.append(helper.make_node("Log", ["positive"], [LOGITS]))
    nodes.append(helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1))  # before opset 11 no -1
    shape = (BATCH, output.labels)
    taken = (BATCH, 1 if output.kind.startswith("second") else output.labels) if flat else None
    return helper.make_graph(
        nodes,
        "evalmode",
        [helper.make_tensor_value_info("scores", elem_type, taken)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (PROBABILITIES, LOGITS)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
