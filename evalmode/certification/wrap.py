"""Give somebody else's network the inputs and outputs of an artifact: its preprocessing and softmax into the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from evalmode.artifact.tensors import INPUT, LOGITS, PROBABILITIES
from evalmode.certification.foreign import BATCH, describe, name_type
from evalmode.errors import UsageError
from evalmode.images.pixels import PixelContract

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
CASTS = (*FLOATS, TensorProto.UINT8)  # what images are made
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


def read_input(
    graph: onnx.ModelProto, size: tuple[int, ...] | None, runs: Callable[[tuple[int, ...]], bool]
) -> tuple[str, PixelContract, str]:
    """What images a network takes.

    Args:
        graph: with one input of images.
        size: height and width, where the graph leaves them open, and channels, where that is not enough.
        runs: whether the network runs on one image of a shape, as it takes it; asked where the graph says too little.

    Returns:
        The input's name, the shape of its pixels, and its layout.

    Raises:
        UsageError: it takes something else, or its size is not known.
    """
    inputs = list(graph.graph.input)
    told = "; ".join(map(describe, inputs)) or "nothing"
    if len(inputs) != 1:
        raise UsageError(
            f"the network takes {told}: expected one input of images; other networks are certified with --samples"
        )
    name, kind = inputs[0].name, inputs[0].type.tensor_type
    if kind.elem_type not in CASTS:
        wanted = ", ".join(map(name_type, CASTS))
        raise UsageError(f"the network takes {told}: expected images of {wanted}; other networks: --samples")
    sides = [dim.dim_value for dim in kind.shape.dim][1:]
    if not kind.HasField("shape"):
        sides = [0, 0, 0]
    if len(sides) == 1:
        if size is None or (sides[0] and sides[0] % (size[0] * size[1])):
            raise UsageError(
                f"the network takes {told}, rows of {sides[0] or 'any number of'} values: say what image that is with "
                "--size HxW"
            )
        channels = size[2] if len(size) == 3 else max(1, sides[0] // (size[0] * size[1]))
        _check_channels(channels, told)
        return name, PixelContract(size[0], size[1], channels), "flat"
    if len(sides) != 3:
        raise UsageError(f"the network takes {told}: expected 4 dimensions (a batch of images) or 2")
    found = [
        (layout, height, width, channels)
        for layout, (height, width, channels) in _list_layouts(sides)
        if _fits(channels, size)
    ]
    if not found:
        outer = sides[2] if sides[0] > sides[2] > 0 else sides[0]
        _check_channels(outer, told)
        raise UsageError(f"the network takes {told}, --size says {size[2] if size else 0} channels")
    _, height, width, _ = found[0]
    if not (height and width) and size is None:
        raise UsageError(f"the network takes {told}, images of any size: choose one with --size HxW")
    if size is not None:
        if (height or size[0], width or size[1]) != size[:2]:
            raise UsageError(f"the network takes images of {height}x{width}, --size says {size[0]}x{size[1]}")
        height, width = size[:2]
    candidates = [
        (PixelContract(height, width, depth), layout)
        for layout, _, _, channels in found
        for depth in ((channels,) if channels else (3, 1) if size is None or len(size) < 3 else (size[2],))
    ]
    if len(candidates) > 1:  # not only what the graph says
        candidates = [one for one in candidates if runs(order_axes(*one))]
    if len({contract for contract, _ in candidates}) != 1:  # of two layouts the first: accuracy shows if it is wrong
        these = " and ".join(f"{layout} with {contract.channels} channels" for contract, layout in candidates)
        raise UsageError(
            f"the network takes {told}: this does not say how many channels images have. "
            + (
                f"It runs on {these}: choose with --size HxWxC"
                if these
                else f"It does not run on images of {height}x{width} with 1 or 3 channels: check --size"
            )
        )
    return name, *candidates[0]


def _list_layouts(sides: list[int]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """The layouts that axes may be, with height, width and channels; 0 where any will do."""
    first, middle, last = sides
    sure = first in (1, 3) or last in (1, 3)
    if first in (1, 3) or (not first and not sure):
        yield "NCHW", (middle, last, first)
    if (last in (1, 3) and first not in (1, 3)) or (not last and not sure):
        yield "NHWC", (first, middle, last)


def _fits(channels: int, size: tuple[int, ...] | None) -> bool:
    return not channels or size is None or len(size) < 3 or size[2] == channels


def order_axes(contract: PixelContract, layout: str) -> tuple[int, ...]:
    """The shape of one image in a layout."""
    height, width, channels = contract.shape
    return {"NCHW": (1, channels, height, width), "NHWC": (1, height, width, channels)}.get(
        layout, (1, height * width * channels)
    )


def _check_channels(channels: int, told: str) -> None:
    if channels not in (1, 3):
        raise UsageError(f"the network takes {told}, {channels} channels: expected 1 (grey) or 3 (colour)")


def find_scores(graph: onnx.ModelProto, labels: int, name: str | None) -> str:
    """The name of the output that has a value for each label.

    Args:
        graph: somebody else's.
        labels: how many.
        name: of the output, where several have one.

    Raises:
        UsageError: none has, or several.
    """
    outputs = {value.name: value for value in graph.graph.output}
    told = "; ".join(map(describe, outputs.values())) or "nothing"
    if name is not None:
        if name not in outputs:
            raise UsageError(f"the network has no output {name}, it gives {told}")
        return name
    found = []
    for value in outputs.values():
        kind = value.type.tensor_type
        sides = [dim.dim_value for dim in kind.shape.dim][1:]
        wide = [side for side in sides if side != 1] or sides[:1]
        if kind.elem_type in FLOATS and (wide in ([0], [labels]) or not kind.HasField("shape")):
            found.append(value.name)
    if len(found) > 1:
        raise UsageError(
            f"the network gives {told}; {', '.join(found)} have a value for each of {labels} labels: choose one with "
            "--output NAME"
        )
    if not found:
        maps = any(value.type.WhichOneof("value") == "sequence_type" for value in outputs.values())
        todo = "export it without ZipMap (zipmap=False)" if maps else "do the labels fit the network?"
        raise UsageError(f"the network gives {told}; none has a float value for each of {labels} labels: {todo}")
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
        if value.name in (name, scores) and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    taken = next(value.type.tensor_type.elem_type for value in inner.graph.input if value.name == name)
    given = next(value.type.tensor_type for value in inner.graph.output if value.name == scores)
    flat = len(given.shape.dim) == 2
    inner = compose.add_prefix(inner, INNER)
    before = _build_before(INNER + name, preprocessing, taken)
    after = _build_after(labels, probabilities, given.elem_type, flat)
    joined = compose.merge_graphs(before, inner.graph, [("ready", INNER + name)])
    joined = compose.merge_graphs(joined, after, [(INNER + scores, "scores")])
    return helper.make_model(joined, opset_imports=inner.opset_import, ir_version=inner.ir_version)


def _build_before(name: str, wanted: Preprocessing, elem_type: int) -> onnx.GraphProto:
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
        helper.make_node("Add", ["scaled", "shift"], ["shifted" if elem_type == TensorProto.FLOAT else "exact"]),
    ]
    if elem_type != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", ["exact"], ["shifted"], to=elem_type))
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
        [helper.make_tensor_value_info("ready", elem_type, (BATCH, *shape))],
        [numpy_helper.from_array(value, constant) for constant, value in constants.items()],
    )


def _build_after(labels: int, probabilities: bool, elem_type: int, flat: bool) -> onnx.GraphProto:
    """Scores -> probabilities and logits, float32 (N, K); the scores may be of another type, or (N, K, 1, 1)."""
    nodes, scores = [], "scores"
    if elem_type != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [scores], ["float_scores"], to=TensorProto.FLOAT))
        scores = "float_scores"
    if not flat:
        nodes.append(helper.make_node("Flatten", [scores], ["rows"], axis=1))
        scores = "rows"
    constants = []
    if probabilities:
        nodes.append(helper.make_node("Max", [scores, "least"], ["positive"]))
        nodes.append(helper.make_node("Log", ["positive"], [LOGITS]))
        constants = [numpy_helper.from_array(np.array(LEAST, np.float32), "least")]
    else:
        nodes.append(helper.make_node("Identity", [scores], [LOGITS]))
    nodes.append(helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1))  # before opset 11 no -1
    shape = (BATCH, labels)
    return helper.make_graph(
        nodes,
        "evalmode",
        [helper.make_tensor_value_info("scores", elem_type, shape if flat else None)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (PROBABILITIES, LOGITS)],
        constants,
    )
