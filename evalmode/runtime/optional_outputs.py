"""Optional outputs of a network: they are computed only where they are requested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evalmode.artifact.parts import Parts
from evalmode.artifact.tensors import Tensors
from evalmode.runtime.tensor import TYPES, Tensor, read_tensor


@dataclass(frozen=True, eq=False)
class OptionalOutputs:
    """The optional outputs of a network.

    Attributes:
        tensors: Their descriptions.
        shared: The outputs of the first part of the graph that are not required outputs, by name.
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


def open_optional(parts: Parts, first: Any, open_session: Callable[[bytes], Any]) -> OptionalOutputs:
    """Open the second part of a graph.

    Args:
        parts: The graph.
        first: The session of its first part.
        open_session: Opens a session.

    Raises:
        ArtifactInvalid: An optional output is not numeric, or its first axis is not a batch of any size.
    """
    described = {one.name: one for one in first.get_outputs()}
    second = None
    if parts.second:
        computed = {name: (TYPES[one.type], one.shape) for name, one in described.items()}
        second = open_session(parts.write_second(computed))
        described.update({one.name: one for one in second.get_outputs()})
    return OptionalOutputs(tuple(read_tensor(described[name]) for name in parts.optional), parts.shared, second)
