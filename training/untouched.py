"""Run a network without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Restore, bit for bit, everything that running a network changes.

    Weights, buffers, gradients, train or eval mode, the attributes of its modules and torch's random state are
    restored. The network is not copied, because some networks cannot be copied, such as one that keeps an activation.
    Hooks are not removed.

    Args:
        network: The network that runs inside the block, on any device.
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
