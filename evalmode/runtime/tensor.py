"""The descriptions of a network's inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evalmode.artifact.tensors import DTYPES
from evalmode.errors import ArtifactInvalid

_TYPE_NAMES = {"float32": "float", "float64": "double"}  # where onnxruntime's names are not numpy's
TYPES = {f"tensor({_TYPE_NAMES.get(name, name)})": np.dtype(name) for name in DTYPES}  # by onnxruntime's names


@dataclass(frozen=True)
class Tensor:
    """The description of an input or output of a network.

    Attributes:
        name: Its name in the graph.
        dtype: The type of its elements.
        shape: Its shape without the batch, which is the first axis; -1 for an axis of any size.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def read_tensor(described: Any) -> Tensor:
    """Read onnxruntime's description of an input or output.

    Args:
        described: An element of ``get_inputs`` or ``get_outputs`` of a session.

    Raises:
        ArtifactInvalid: It is not numeric, or its first axis is not a batch of any size.
    """
    batch, *shape = described.shape or [1]
    if described.type not in TYPES or isinstance(batch, int):
        raise ArtifactInvalid(
            f"{described.name} is {described.type} {described.shape}: expected numbers, with a batch of any size along "
            "the first axis"
        )
    fixed = tuple(side if isinstance(side, int) else -1 for side in shape)
    return Tensor(described.name, TYPES[described.type], fixed)
