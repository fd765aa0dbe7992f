"""Golden inputs of a network of tensors, as the user gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from evalmode.artifact.tensors import Tensors
from evalmode.certification.golden_images import MAX_GOLDEN
from evalmode.certification.npz_files import read_npz
from evalmode.certification.onnx_files import describe, name_type
from evalmode.errors import UsageError


def read_samples(path: Path, graph: onnx.ModelProto) -> Tensors:
    """Read inputs of a network from an ``.npz`` file.

    Args:
        path: The file.
        graph: The network.

    Returns:
        The first 64 inputs, by name.

    Raises:
        UsageError: The file is damaged, or its arrays do not fit the network.
        OSError: The file cannot be read.
    """
    return check_samples(read_npz(path), graph, str(path))


def check_samples(samples: Tensors, graph: onnx.ModelProto, source: str) -> Tensors:
    """Check that arrays are inputs of a network.

    Args:
        samples: Arrays by name, N along the first axis of each.
        graph: The network.
        source: What to call the samples in an error.

    Returns:
        The first 64 inputs, by name.

    Raises:
        UsageError: A name, a type or a shape is not the network's, or a value is NaN or infinite.
    """
    expected = {one.name: name_type(one.type.tensor_type.elem_type) for one in graph.graph.input}
    dtypes = {name: array.dtype.name for name, array in samples.items()}
    if dtypes != expected:
        raise UsageError(f"{source} holds {_list(dtypes)}; the network takes {_list(expected)}")
    counts = {len(array) for array in samples.values()}
    if len(counts) != 1 or not min(counts):
        raise UsageError(
            f"{source} holds {', '.join(map(str, sorted(counts)))} rows: expected as many of each input, at least 1"
        )
    for value in graph.graph.input:
        array, kind = samples[value.name], value.type.tensor_type
        sides = [dim.dim_value for dim in kind.shape.dim]
        fits = len(sides) == array.ndim and all(
            side in (0, found) for side, found in zip(sides[1:], array.shape[1:], strict=True)
        )
        if kind.HasField("shape") and not fits:
            raise UsageError(f"{source} holds {value.name} {array.shape}; the network takes {describe(value)}")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise UsageError(f"{source}: {value.name} holds NaN or infinite values")
    return {name: array[:MAX_GOLDEN] for name, array in samples.items()}


def _list(dtypes: dict[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(dtypes.items())) or "nothing"
