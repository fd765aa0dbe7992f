"""Remove from another tool's network what an artifact has no use for: maps, switches of training, unused parts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from evalmode.artifact.sealing import walk

MAPS = "ZipMap"  # of the domain ai.onnx.ml
SWITCHES = ("learning_phase", "training")  # in names of inputs: Keras' and TensorFlow's


def drop_inputs(network: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Remove inputs that no node reads, and turn off switches between training and evaluation.

    Args:
        network: The network, which is not changed.

    Returns:
        A copy, or the network itself if it has one input only; and a sentence for each input that it lacks.
    """
    if len(network.graph.input) == 1:
        return network, ()
    adapted = onnx.ModelProto()
    adapted.CopyFrom(network)
    graph = adapted.graph
    read = {name for node in walk(graph, onnx.NodeProto) for name in node.input} | {one.name for one in graph.output}
    notes = []
    for value in list(graph.input):
        if len(graph.input) > 1 and value.name not in read:
            notes.append(f"input {value.name} is left out: no node reads it")
            graph.input.remove(value)
        elif _is_switch(value):
            shape = [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
            graph.initializer.append(numpy_helper.from_array(np.zeros(shape, bool), value.name))
            notes.append(f"input {value.name} is false: it switches between training and evaluation")
            graph.input.remove(value)
    return adapted, tuple(notes)


def _is_switch(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return (
        kind.elem_type == TensorProto.BOOL
        and all(dim.dim_value in (0, 1) for dim in kind.shape.dim)
        and any(word in value.name.lower() for word in SWITCHES)
    )


def remove_maps(network: onnx.ModelProto) -> onnx.ModelProto:
    """Replace outputs of ZipMap, lists of a dictionary for each input, by the tensors that they are made of.

    Args:
        network: The network, which is not changed.

    Returns:
        A copy, or the network itself if it has no such output.
    """
    maps = {node.output[0]: node for node in list_maps(network)}
    if not maps:
        return network
    adapted = onnx.ModelProto()
    adapted.CopyFrom(network)
    for value in adapted.graph.output:
        if node := maps.get(value.name):
            scores = helper.make_tensor_value_info(
                node.input[0], TensorProto.FLOAT, (None, len(_read_keys(node)) or None)
            )
            value.CopyFrom(scores)
    for node in maps.values():
        adapted.graph.node.remove(node)
    return adapted


def keep_numbers(network: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Replace maps of scores by tensors, and leave out outputs of text, such as scikit-learn's names of labels.

    Args:
        network: The network, which is not changed.

    Returns:
        A copy, or the network itself if all outputs are numbers; and a sentence for each output that was changed.
    """
    notes = [
        f"output {node.input[0]} is the tensor that {node.output[0]} are maps of, a column each for "
        + ", ".join(one.decode() if isinstance(one, bytes) else str(one) for one in _read_keys(node))
        for node in list_maps(network)
    ]
    adapted = remove_maps(network)
    texts = [one for one in adapted.graph.output if one.type.tensor_type.elem_type == TensorProto.STRING]
    if texts and len(texts) < len(adapted.graph.output):
        if adapted is network:
            adapted = onnx.ModelProto()
            adapted.CopyFrom(network)
        for value in texts:
            adapted.graph.output.remove(value)
            notes.append(f"output {value.name} is left out: it is text")
        drop_unused(adapted.graph)
    return adapted, tuple(notes)


def _read_keys(node: onnx.NodeProto) -> list[bytes] | list[int]:
    """The keys of the maps of a ZipMap, one for each column."""
    return next((list(helper.get_attribute_value(one)) for one in node.attribute), [])


def list_maps(network: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of ZipMap whose outputs the network returns."""
    returned = {value.name for value in network.graph.output}
    return (node for node in network.graph.node if node.op_type == MAPS and node.output[0] in returned)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and weights that no output depends on, such as scikit-learn's names of predicted labels.

    Args:
        graph: The graph, which is changed; its nodes are in topological order.
    """
    needed = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):
        if needed & set(node.output):
            needed |= {name for part in walk(node, onnx.NodeProto) for name in part.input}
            needed |= {value.name for part in walk(node, onnx.GraphProto) for value in part.output}
        else:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
