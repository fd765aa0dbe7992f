"""A network's weights and statistics, kept and compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def state_of(network: nn.Module) -> State:
    """A copy of what a network holds now."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one: State, other: State) -> bool:
    """Whether two hold the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
