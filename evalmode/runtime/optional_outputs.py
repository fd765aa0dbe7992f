"""Optional outputs of a network: they are computed only where they are requested.

The official builds of ONNX Runtime run the whole graph whichever outputs are fetched: they ignore
``RunOptions.only_execute_path_to_fetches``. So the graph is split. Its first part computes the required outputs, and
returns the tensors that both parts need as outputs, too. Its second part computes the optional outputs from these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from evalmode.artifact.sealing import walk
from evalmode.artifact.tensors import Tensors
from evalmode.errors import ArtifactInvalid
from evalmode.runtime.tensor import TYPES, Tensor, read_tensor

Open = Callable[[bytes], Any]  # the bytes of a graph -> a session


@dataclass(frozen=True, eq=False)
class OptionalOutputs:
    """The optional outputs of a network.

    Attributes:
        tensors: Their descriptions.
        shared: The outputs of the first part that are not outputs of the network, by name.
        session: The second part; None if the first part computes all optional outputs.
    """

    tensors: tuple[Tensor, ...] = ()
    shared: tuple[str, ...] = ()
    session: Any | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(tensor.name for tensor in self.tensors)

    def compute(self, inputs: Tensors, outputs: Tensors, options: Any = None) -> Tensors:
        """Compute the optional outputs.

        Args:
            inputs: The inputs of the network by name.
            outputs: All outputs of the first part by name.
            options: onnxruntime's ``RunOptions``.

        Returns:
            All optional outputs by name.
        """
        known = {**inputs, **outputs}
        if self.session:
            feed = {one.name: known[one.name] for one in self.session.get_inputs()}
            names = [one.name for one in self.session.get_outputs()]
            known.update(zip(names, self.session.run(names, feed, options), strict=True))
        return {name: known[name] for name in self.names}


NO_OUTPUTS = OptionalOutputs()


@dataclass(frozen=True)
class Parts:
    """A network that is split.

    Attributes:
        first: The graph of the required outputs, the bytes of an ONNX file; empty if that is the whole network.
        second: The nodes that only the optional outputs need.
        shared: The outputs of the first part that are not outputs of the network, by name.
    """

    first: bytes
    second: Sequence[onnx.NodeProto]
    shared: tuple[str, ...]


WHOLE = Parts(b"", (), ())  # no outputs are optional


def split(graph: onnx.ModelProto, optional: Collection[str]) -> Parts:
    """Split a network that has optional outputs.

    Args:
        graph: The network.
        optional: The names of its optional outputs; at least one.

    Raises:
        ArtifactInvalid: The network has no output of such a name, or no other outputs.
    """
    names = [output.name for output in graph.graph.output]
    required = [output for output in graph.graph.output if output.name not in optional]
    if not required or set(optional) - set(names):
        raise ArtifactInvalid(f"its optional outputs are {', '.join(optional)}, its outputs {', '.join(names)}")
    first, second = split_nodes(graph.graph, [output.name for output in required], optional)
    made = {name for node in first for name in node.output}
    shared = made & {*optional, *(name for node in second for name in _list_used(node))}
    shared -= {output.name for output in required}
    outputs = [*required, *map(onnx.helper.make_empty_tensor_value_info, sorted(shared))]
    return Parts(_select(graph, first, graph.graph.input, outputs), second, tuple(sorted(shared)))


def open_optional(
    graph: onnx.ModelProto, optional: Collection[str], parts: Parts, session: Any, open_session: Open
) -> OptionalOutputs:
    """Open the second part of a network.

    Args:
        graph: The network.
        optional: The names of its optional outputs.
        parts: The network, split.
        session: The session of the first part.
        open_session: Opens a session.

    Raises:
        ArtifactInvalid: An optional output is not numeric, or its first axis is not a batch of any size.
    """
    described = {one.name: one for one in session.get_outputs()}
    second = None
    if parts.second:
        used = {name for node in parts.second for name in _list_used(node)}
        inputs = [_describe(one) for one in described.values() if one.name in used]
        inputs += [value for value in graph.graph.input if value.name in used]
        outputs = [value for value in graph.graph.output if value.name in optional and value.name not in described]
        second = open_session(_select(graph, parts.second, inputs, outputs))
        described.update({one.name: one for one in second.get_outputs()})
    return OptionalOutputs(tuple(read_tensor(described[name]) for name in optional), parts.shared, second)


def split_nodes(
    graph: onnx.GraphProto, required: Iterable[str], optional: Iterable[str]
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Split the nodes of a graph.

    Args:
        graph: The graph, its nodes in the order of execution.
        required: Names of outputs.
        optional: Names of other outputs.

    Returns:
        The nodes that the required outputs need, and those that only the optional outputs need.
    """
    wanted, others = set(required), set(optional)
    first: list[onnx.NodeProto] = []
    second: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        for names, nodes in ((wanted, first), (others, second)):
            if not names.isdisjoint(node.output):
                names.update(_list_used(node))
                nodes.insert(0, node)
                break
    return first, second


def _list_used(node: onnx.NodeProto) -> set[str]:
    """List the tensors that a node and the nodes inside it use; some of these may be tensors of an inner graph."""
    inner = {output.name for graph in walk(node, onnx.GraphProto) for output in graph.output}
    return {name for one in walk(node, onnx.NodeProto) for name in one.input if name} | inner


def _select(graph: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], inputs: Any, outputs: Any) -> bytes:
    """Return a graph with some of the nodes. onnxruntime drops the weights that they do not use."""
    part = onnx.ModelProto(ir_version=graph.ir_version, opset_import=graph.opset_import)
    part.graph.CopyFrom(graph.graph)
    for field, values in (("node", nodes), ("input", inputs), ("output", outputs)):
        part.graph.ClearField(field)
        getattr(part.graph, field).extend(values)
    return part.SerializeToString()


def _describe(output: Any) -> onnx.ValueInfoProto:
    """Describe an output of a session as the input of another graph."""
    dtype = onnx.helper.np_dtype_to_tensor_dtype(TYPES[output.type])
    return onnx.helper.make_tensor_value_info(output.name, dtype, output.shape)
