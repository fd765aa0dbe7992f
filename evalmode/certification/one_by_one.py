"""Run a network that takes one input for each input of a batch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper

from evalmode.certification.graph import read_opset
from evalmode.certification.onnx_files import BATCH

EACH = "each_"  # the prefix of every name inside
ROW = "row_"  # of inputs and outputs without their first axis
SCAN_OPSET = 9  # the first whose Scan has no batch axis of its own
AXES_OPSET = 13  # the first whose Squeeze takes its axes as an input
AXES = "first_axis"


def run_each(network: onnx.ModelProto) -> onnx.ModelProto:
    """Build a network that accepts any batch size, and runs another one for one input after the other.

    Args:
        network: Takes batches of 1; not changed.

    Returns:
        A network of the same inputs and outputs, whose first axis is free: a Scan.
    """
    if read_opset(network) < SCAN_OPSET:
        network = onnx.version_converter.convert_version(network, SCAN_OPSET)
    inner = compose.add_prefix(network, EACH).graph
    inputs = [value.name for value in network.graph.input]
    outputs = [value.name for value in network.graph.output]
    opset = read_opset(network)
    body = helper.make_graph(
        [
            *(_change_axes("Unsqueeze", ROW + name, EACH + name, opset) for name in inputs),
            *inner.node,
            *(_change_axes("Squeeze", EACH + name, ROW + name, opset) for name in outputs),
        ],
        "one_input",
        [_without_batch(value) for value in network.graph.input],
        [_without_batch(value) for value in network.graph.output],
    )
    scan = helper.make_node("Scan", inputs, outputs, body=body, num_scan_inputs=len(inputs))
    axes = [numpy_helper.from_array(np.zeros(1, np.int64), AXES)] if opset >= AXES_OPSET else []
    graph = helper.make_graph(
        [scan],
        network.graph.name,
        list(_with_free_batch(network.graph.input)),
        list(_with_free_batch(network.graph.output)),
        [*inner.initializer, *axes],
        sparse_initializer=inner.sparse_initializer,
    )
    return helper.make_model(graph, opset_imports=network.opset_import, ir_version=network.ir_version)


def _change_axes(operator: str, before: str, after: str, opset: int) -> onnx.NodeProto:
    """A node that adds or removes the first axis."""
    if opset < AXES_OPSET:
        return helper.make_node(operator, [before], [after], axes=[0])
    return helper.make_node(operator, [before, AXES], [after])


def _without_batch(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """An input or output as one row of a batch."""
    row = onnx.ValueInfoProto()
    row.CopyFrom(value)
    row.name = ROW + value.name
    if row.type.tensor_type.shape.dim:
        del row.type.tensor_type.shape.dim[0]
    return row


def _with_free_batch(values: Iterable[onnx.ValueInfoProto]) -> Iterable[onnx.ValueInfoProto]:
    for value in values:
        free = onnx.ValueInfoProto()
        free.CopyFrom(value)
        if free.type.tensor_type.shape.dim:
            free.type.tensor_type.shape.dim[0].dim_param = BATCH
        yield free
