"""The signature of a graph: names, types and shapes of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class TensorType:
    """An input or an output.

    Attributes:
        name: Its name in the graph.
        dtype: The name of its numpy dtype.
        shape: The axes after the batch; None for an axis of any length.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a graph.

    Attributes:
        inputs: The inputs, in the order of the graph.
        outputs: The outputs, likewise.
    """

    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]


def read_signature(graph: onnx.ModelProto) -> Signature:
    """Read the signature of a graph, whose first axis is the batch."""
    return Signature(_read(graph.graph.input), _read(graph.graph.output))


def _read(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorType, ...]:
    return tuple(_read_one(value.name, value.type.tensor_type) for value in values)


def _read_one(name: str, kind: onnx.TypeProto.Tensor) -> TensorType:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorType(name, dtype, tuple(axis.dim_value or None for axis in kind.shape.dim[1:]))
