"""A graph in two parts: what its required outputs need, and what only its optional outputs need.

The official builds of ONNX Runtime run the whole graph whichever outputs are fetched: they ignore
``RunOptions.only_execute_path_to_fetches``. So each part gets a session of its own. The tensors that both parts need
are outputs of the first part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from evalmode.artifact.sealing import walk
from evalmode.errors import ArtifactInvalid

Shape = Sequence[int | str | None]


@dataclass(frozen=True, eq=False)
class Parts:
    """A graph in two parts.

    Attributes:
        graph: The whole graph.
        optional: The names of its optional outputs.
        first: The nodes that the required outputs need.
        second: The nodes that only the optional outputs need.
        shared: The outputs of the first part that are not required outputs, by name.
    """

    graph: onnx.ModelProto
    optional: tuple[str, ...]
    first: Sequence[onnx.NodeProto]
    second: Sequence[onnx.NodeProto]
    shared: tuple[str, ...]

    def write_first(self) -> bytes:
        """Return the first part as the bytes of an ONNX file."""
        outputs = [output for output in self.graph.graph.output if output.name not in self.optional]
        outputs += map(onnx.helper.make_empty_tensor_value_info, self.shared)
        return _select(self.graph, self.first, self.graph.graph.input, outputs)

    def write_second(self, computed: Mapping[str, tuple[np.dtype[Any], Shape]]) -> bytes:
        """Return the second part as the bytes of an ONNX file.

        Args:
            computed: The type and shape of each output of the first part by name, as ONNX Runtime infers them.
        """
        used = {name for node in self.second for name in _list_used(node)}
        inputs = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(dtype), shape)
            for name, (dtype, shape) in computed.items()
            if name in used
        ]
        inputs += [value for value in self.graph.graph.input if value.name in used]
        wanted = set(self.optional) - set(self.shared)
        return _select(self.graph, self.second, inputs, [out for out in self.graph.graph.output if out.name in wanted])


def split_graph(graph: onnx.ModelProto, optional: tuple[str, ...]) -> Parts:
    """Split a graph that has optional outputs.

    Args:
        graph: The graph.
        optional: The names of its optional outputs; at least one.

    Raises:
        ArtifactInvalid: The graph has no output of such a name, or no other outputs.
    """
    names = [output.name for output in graph.graph.output]
    required = [name for name in names if name not in optional]
    if not required or set(optional) - set(names):
        raise ArtifactInvalid(f"its optional outputs are {', '.join(optional)}, its outputs {', '.join(names)}")
    first, second = _split_nodes(graph.graph.node, required, optional)
    made = {name for node in first for name in node.output}
    shared = made & {*optional, *(name for node in second for name in _list_used(node))}
    return Parts(graph, optional, first, second, tuple(sorted(shared - set(required))))


def _split_nodes(
    nodes: Sequence[onnx.NodeProto], required: Iterable[str], optional: Collection[str]
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Split nodes, which are in the order of execution."""
    wanted, others = set(required), set(optional)
    first: list[onnx.NodeProto] = []
    second: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        for names, part in ((wanted, first), (others, second)):
            if not names.isdisjoint(node.output):
                names.update(_list_used(node))
                part.append(node)
                break
    return first[::-1], second[::-1]


def _list_used(node: onnx.NodeProto) -> set[str]:
    """List the tensors that a node and the nodes inside it use; some of these may be tensors of an inner graph."""
    return {name for one in walk(node, onnx.NodeProto) for name in one.input if name}


def _select(graph: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], inputs: Any, outputs: Any) -> bytes:
    """Return a graph with some of the nodes. ONNX Runtime drops the weights that they do not use."""
    part = onnx.ModelProto(ir_version=graph.ir_version, opset_import=graph.opset_import)
    part.graph.CopyFrom(graph.graph)
    for field, values in (("node", nodes), ("input", inputs), ("output", outputs)):
        part.graph.ClearField(field)
        getattr(part.graph, field).extend(values)
    return part.SerializeToString()
