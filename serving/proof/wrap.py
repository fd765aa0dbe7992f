"""Give somebody else's network the inputs and outputs of an artifact: its preprocessing and softmax into the graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from serving.certificate import INPUT, LOGITS, PROBABILITIES
from serving.errors import UsageError
from serving.pixels import PixelContract

BATCH = "batch"
INNER = "network_"  # put before every name of the wrapped graph
LEAST = 1e-12  # a probability of 0 has no logit


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants done to pixels before it sees them.

    Attributes:
        contract: the shape of the pixels.
        layout: "NCHW", "NHWC" or "flat" (N, H * W * C).
        bgr: whether it wants blue first.
        scale: what pixels in 0..255 are multiplied by: one factor, or one for each channel in the network's order.
        shift: what is then added, likewise.
    """

    contract: PixelContract
    layout: str
    bgr: bool
    scale: tuple[float, ...]
    shift: tuple[float, ...]


def read_network(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, with weights that lie beside it.

    Raises:
        UsageError: it is something else, or weights are missing.
    """
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's decoder and onnx raise types of their own
        raise UsageError(f"{path} is not a whole ONNX file: {error}") from error


def read_input(graph: onnx.ModelProto, size: tuple[int, int] | None) -> tuple[str, PixelContract, str]:
    """What images a network takes.

    Args:
        graph: with one input of images, float32.
        size: height and width, where the graph leaves them open.

    Returns:
        The input's name, the shape of its pixels, and its layout.

    Raises:
        UsageError: it takes something else, or its size is not known.
    """
    constants = {tensor.name for tensor in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in constants]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise UsageError(f"the network takes {[value.name for value in inputs]}: one float32 input is wanted")
    sides = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim][1:]
    if len(sides) == 1:
        if size is None or (sides[0] and sides[0] % (size[0] * size[1])):
            raise UsageError(f"the network takes rows of {sides[0]} values: say what image that is with --size HxW")
        channels = max(1, sides[0] // (size[0] * size[1]))
        _check_channels(channels)
        return inputs[0].name, PixelContract(*size, channels), "flat"
    if len(sides) != 3:
        raise UsageError(f"the network takes {len(sides) + 1} dimensions: 4 (a batch of images) or 2 are wanted")
    layout = "NHWC" if sides[2] in (1, 3) and sides[0] not in (1, 3) else "NCHW"
    height, width, channels = sides if layout == "NHWC" else (sides[1], sides[2], sides[0])
    if not (height and width) and size is None:
        raise UsageError("the network takes images of any size: choose one with --size HxW")
    _check_channels(channels)
    if size is not None:
        if (height or size[0], width or size[1]) != size:
            raise UsageError(f"the network takes images of {height}x{width}, --size says {size[0]}x{size[1]}")
        height, width = size
    contract = PixelContract(height, width, channels)
    return inputs[0].name, contract, layout


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise UsageError(f"the network takes images of {channels} channels: 1 (grey) or 3 (colour) are wanted")


def find_scores(graph: onnx.ModelProto, labels: int) -> str:
    """The name of the output that has a value for each label.

    Raises:
        UsageError: none has, or several.
    """
    found = []
    for value in graph.graph.output:
        kind = value.type.tensor_type
        sides = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.FLOAT and len(sides) == 2 and sides[1] in (0, labels):
            found.append(value.name)
    if len(found) != 1:
        offered = [value.name for value in graph.graph.output]
        raise UsageError(
            f"of the network's outputs {offered}, {len(found)} have a float32 value for each of {labels} labels: "
            "one is wanted; do the labels fit the network?"
        )
    return found[0]


def wrap(
    graph: onnx.ModelProto, name: str, scores: str, preprocessing: Preprocessing, labels: int, probabilities: bool
) -> onnx.ModelProto:
    """Put preprocessing before a network, and softmax behind it, or logarithms where it gives probabilities.

    Args:
        graph: somebody else's.
        name: of its input.
        scores: of its output, (N, K).
        preprocessing: what it wants done to pixels.
        labels: K.
        probabilities: whether it gives probabilities already.
    """
    inner = onnx.ModelProto()
    inner.CopyFrom(graph)
    del inner.metadata_props[:]
    del inner.graph.value_info[:]  # made for another batch, perhaps
    for output in [output for output in inner.graph.output if output.name != scores]:
        inner.graph.output.remove(output)
    for value in (*inner.graph.input, *inner.graph.output):
        if value.name in (name, scores):
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    inner = compose.add_prefix(inner, INNER)
    before = _build_before(INNER + name, preprocessing)
    joined = compose.merge_graphs(before, inner.graph, [("ready", INNER + name)])
    joined = compose.merge_graphs(joined, _build_after(labels, probabilities), [(INNER + scores, "scores")])
    return helper.make_model(joined, opset_imports=inner.opset_import, ir_version=inner.ir_version)


def _build_before(name: str, wanted: Preprocessing) -> onnx.GraphProto:
    """uint8 (N, H, W, C) -> what the network takes."""
    height, width, channels = wanted.contract.shape
    order = [2, 1, 0] if wanted.bgr else list(range(channels))
    constants: dict[str, npt.NDArray[Any]] = {
        "scale": np.array(wanted.scale, np.float32),
        "shift": np.array(wanted.shift, np.float32),
        "order": np.array(order, np.int64),
    }
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["floats", "order"], ["ordered"], axis=3),
        helper.make_node("Mul", ["ordered", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"]),
    ]
    match wanted.layout:
        case "NCHW":
            nodes.append(helper.make_node("Transpose", ["shifted"], ["ready"], perm=[0, 3, 1, 2]))
            shape: tuple[int, ...] = (channels, height, width)
        case "flat":
            constants["row"] = np.array([-1, height * width * channels], np.int64)
            nodes.append(helper.make_node("Reshape", ["shifted", "row"], ["ready"]))
            shape = (height * width * channels,)
        case _:
            nodes.append(helper.make_node("Identity", ["shifted"], ["ready"]))
            shape = wanted.contract.shape
    return helper.make_graph(
        nodes,
        "evalmode",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, (BATCH, *wanted.contract.shape))],
        [helper.make_tensor_value_info("ready", TensorProto.FLOAT, (BATCH, *shape))],
        [numpy_helper.from_array(value, constant) for constant, value in constants.items()],
    )


def _build_after(labels: int, probabilities: bool) -> onnx.GraphProto:
    """Scores -> probabilities and logits, float32 (N, K)."""
    nodes = [helper.make_node("Identity", ["scores"], [LOGITS])]
    constants = []
    if probabilities:
        nodes = [helper.make_node("Max", ["scores", "least"], ["positive"])]
        nodes.append(helper.make_node("Log", ["positive"], [LOGITS]))
        constants = [numpy_helper.from_array(np.array(LEAST, np.float32), "least")]
    nodes.append(helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=-1))
    shape = (BATCH, labels)
    return helper.make_graph(
        nodes,
        "evalmode",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (PROBABILITIES, LOGITS)],
        constants,
    )
