"""Copies of a network's weights and statistics, and their comparison."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def state_of(network: nn.Module) -> State:
    """Copy the weights and statistics of a network."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one: State, other: State) -> bool:
    """Whether two states are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
