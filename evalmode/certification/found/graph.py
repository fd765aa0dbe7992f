"""What the graph of a network states: the shape of its images, scikit-learn's classes, and rescaling by Keras."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from evalmode.certification.adapt import list_maps
from evalmode.certification.found.facts import Fact, make_fact
from evalmode.certification.found.values import to_labels
from evalmode.certification.onnx_files import describe

CLASSES = ("classlabels_strings", "classlabels_ints", "classlabels_int64s")  # attributes of the domain ai.onnx.ml
KEEPS_VALUES = ("Cast", "Identity", "Reshape", "Transpose")
FULL_SCALES = (1.0, 2.0)  # 255 by the factors of Rescaling(1/255), and Rescaling(1/127.5, offset=-1)


def read_shape(graph: onnx.ModelProto) -> Iterator[Fact]:
    """Read the size of the images where the network's only input has four axes, one of them 1 or 3 channels.

    The denotation ``DATA_CHANNEL`` of an axis says which one it is.

    Source: https://github.com/onnx/onnx/blob/main/docs/DimensionDenotation.md
    """
    if len(graph.graph.input) != 1:
        return
    value = graph.graph.input[0]
    kind = value.type.tensor_type
    if kind.elem_type == TensorProto.UINT8:
        yield Fact("scale", (0.0, 255.0), f"the network's input {describe(value)}")
    axes = list(kind.shape.dim)[1:]
    if len(axes) != 3:
        return
    denoted = [index for index in (0, 2) if axes[index].denotation == "DATA_CHANNEL"]
    found = denoted or [index for index in (0, 2) if axes[index].dim_value in (1, 3)]
    if len(found) != 1:
        return
    source = f"the network's input {describe(value)}"
    height, width = (axis.dim_value for index, axis in enumerate(axes) if index != found[0])
    if axes[found[0]].dim_value in (1, 3):
        yield Fact("channels", axes[found[0]].dim_value, source)
    if height and width:
        yield Fact("size", (height, width), source)


def read_maps(graph: onnx.ModelProto) -> Iterator[Fact]:
    """Read which tensor of scores scikit-learn's ZipMap makes into lists of dictionaries."""
    for node in list_maps(graph):
        source = f"the network's node {node.name or node.op_type}, which is left out: {node.output[0]} are maps of it"
        yield Fact("output", node.input[0], source)


def read_classes(graph: onnx.ModelProto) -> Iterator[Fact]:
    """Read the classes that skl2onnx writes: attributes of classifiers and of ZipMap, or a table of names.

    Class numbers are used only where no other source has names.
    """
    tables = {tensor.name: tensor for tensor in graph.graph.initializer}
    makers = {output: node.op_type for node in graph.graph.node for output in node.output}
    for node in graph.graph.node:
        source = f"the network's node {node.name or node.op_type}"
        for attribute in node.attribute:
            values = helper.get_attribute_value(attribute) if attribute.name in CLASSES else ()
            if values:
                yield _make_labels(list(values), f"{source}: {attribute.name}")
        if (
            node.op_type == "ArrayFeatureExtractor"
            and makers.get(node.input[1]) == "ArgMax"
            and node.input[0] in tables
        ):
            yield _make_labels(
                numpy_helper.to_array(tables[node.input[0]]).ravel().tolist(), f"{source}: {node.input[0]}"
            )


def _make_labels(values: list[object], source: str) -> Fact:
    names = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in values]
    fact = make_fact("labels", names, source, to_labels)
    numbers = all(isinstance(one, int) for one in values)
    return Fact(fact.name, fact.value, fact.source, fact.problem, fallback=numbers)


def read_rescaling(graph: onnx.ModelProto) -> Iterator[Fact]:
    """Read whether the network begins with Keras' Rescaling layer, and so takes pixels of 0 to 255."""
    if len(graph.graph.input) != 1:
        return
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in graph.graph.node
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value"
    }
    name = graph.graph.input[0].name
    users = [node for node in graph.graph.node if name in node.input]
    while len(users) == 1 and users[0].op_type in KEEPS_VALUES and users[0].input[0] == name:
        name = users[0].output[0]
        users = [node for node in graph.graph.node if name in node.input]
    if len(users) != 1 or users[0].op_type not in ("Mul", "Div"):
        return
    other = next((one for one in users[0].input if one != name), "")
    if other not in constants or int(np.prod(constants[other].dims)) != 1:
        return
    factor = float(numpy_helper.to_array(constants[other]).ravel()[0])
    full = 255 * factor if users[0].op_type == "Mul" else 255 / factor if factor else 0.0
    if any(abs(full - scale) < 1e-4 for scale in FULL_SCALES):
        source = f"the network's first node {users[0].name or users[0].op_type}, which rescales pixels"
        yield Fact("scale", (0.0, 255.0), source)
