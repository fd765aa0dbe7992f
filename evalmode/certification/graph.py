"""Checks of a graph that do not run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from evalmode.artifact.sealing import walk
from evalmode.artifact.tensors import Array
from evalmode.errors import TrainMode, WeightsNotFinite

RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")

FIRST_WITHOUT_IS_TEST = 7  # the opset that took this attribute from dropout and batch norm
REMEDY = (
    "Call eval() on the whole network and export again (torch: network.eval() before torch.onnx.export, without its "
    "argument training; Keras: the network itself, called with training=False)"
)


def check_eval_mode(graph: onnx.ModelProto) -> str:
    """Check that no node behaves as in training.

    Args:
        graph: The graph, with its weights.

    Returns:
        What was found, in words.

    Raises:
        TrainMode: Active dropout, a random operator, or batch norm that uses the statistics of its batch.
    """
    constants, computed = dict(_named_constants(graph.graph)), _list_computed(graph.graph)
    nodes = [node for node in walk(graph.graph, onnx.NodeProto) if node.domain in ("", "ai.onnx")]
    found = [described for node in nodes if (described := _describe_training(node, constants, computed))]
    if read_opset(graph) < FIRST_WITHOUT_IS_TEST:
        found += [f"{node.op_type} without is_test ({name_node(node)})" for node in nodes if _lacks_is_test(node)]
    if found:
        raise TrainMode(f"not in eval mode: {'; '.join(dict.fromkeys(found))}. {REMEDY}")
    norms = Counter(node.op_type for node in walk(graph.graph, onnx.NodeProto))["BatchNormalization"]
    return f"no active dropout, no random operator; {norms} batch norms, none by the statistics of its batch"


def _describe_training(node: onnx.NodeProto, constants: dict[str, Array], computed: set[str]) -> str:
    """What a node does that only training should do, in words; "" if it does nothing of the kind."""
    if node.op_type in RANDOM:
        return f"{node.op_type} draws at random ({name_node(node)})"
    if node.op_type == "BatchNormalization":
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if training or len([name for name in node.output if name]) > 1 or computed & set(node.input[3:5]):
            return f"batch norm uses the statistics of its batch ({name_node(node)})"
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        mode = constants.get(node.input[2])
        if mode is None or mode.any():
            return f"dropout drops ({name_node(node)})"
    return ""


def _lacks_is_test(node: onnx.NodeProto) -> bool:
    """Whether a node of an old opset is in training mode, which was its default."""
    tests = any(attribute.name == "is_test" and attribute.i for attribute in node.attribute)
    return node.op_type in ("BatchNormalization", "Dropout") and not tests


def read_opset(graph: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a network uses."""
    return next((int(one.version) for one in graph.opset_import if one.domain in ("", "ai.onnx")), 1)


def name_node(node: onnx.NodeProto) -> str:
    """The name of a node; that of its output if it has none."""
    return str(node.name or node.output[0])


def _named_constants(graph: onnx.GraphProto) -> Iterator[tuple[str, Array]]:
    yield from ((weights.name, numpy_helper.to_array(weights)) for weights in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            yield node.output[0], numpy_helper.to_array(node.attribute[0].t)


def _list_computed(graph: onnx.GraphProto) -> set[str]:
    """The names of the tensors that depend on the input."""
    computed = {value.name for value in graph.input} - {weights.name for weights in graph.initializer}
    for node in graph.node:  # in topological order
        if computed & set(node.input):
            computed |= set(node.output)
    return computed


def check_finite(graph: onnx.ModelProto) -> str:
    """Check that every weight and statistic is finite, and no variance is negative.

    Args:
        graph: The graph, with its weights.

    Returns:
        What was found, in words.

    Raises:
        WeightsNotFinite: A value is NaN or infinite, or a variance is below 0.
    """
    count = 0
    variances = {node.input[4] for node in walk(graph.graph, onnx.NodeProto) if node.op_type == "BatchNormalization"}
    for weights in walk(graph.graph, onnx.TensorProto):
        values = numpy_helper.to_array(weights)
        count += values.size
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise WeightsNotFinite(f"{weights.name}: {bad} of {values.size} values are NaN or infinite")
        if weights.name in variances and (values < 0).any():
            raise WeightsNotFinite(f"{weights.name}: a variance below 0 ({values.min():g})")
    return f"{count:,} values, all finite"
