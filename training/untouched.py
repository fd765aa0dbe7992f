"""Look at a network by running it, and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Put back, afterwards, all that running a network changes, bit for bit.

    That is its weights, buffers, gradients and modes, what its modules keep as attributes, and torch's random numbers.
    A copy would do, but not every network can be copied: one that keeps an activation cannot. Hooks stay: whoever
    registers them removes them.
    """
    modules = list(network.modules())
    attributes = [dict(vars(module)) for module in modules]
    members = [[dict(vars(module)[kind]) for kind in ("_parameters", "_buffers")] for module in modules]
    tensors: list[Tensor] = [*network.parameters(), *network.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [None if tensor.grad is None else tensor.grad.clone() for tensor in tensors]
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, kept, (parameters, buffers) in zip(modules, attributes, members, strict=True):
            vars(module).clear()
            vars(module).update(kept)
            vars(module)["_parameters"].clear()
            vars(module)["_parameters"].update(parameters)
            vars(module)["_buffers"].clear()
            vars(module)["_buffers"].update(buffers)
        with torch.no_grad():
            for tensor, value, gradient in zip(tensors, values, gradients, strict=True):
                tensor.copy_(value)
                tensor.grad = gradient
