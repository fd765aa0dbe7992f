"""Tensors as the bytes of a safetensors file."""

from __future__ import annotations

import safetensors.torch
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Serialise tensors, by name, to the bytes of a safetensors file; shared memory is written once for each name."""
    separate: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous().cpu()
        address = own.untyped_storage().data_ptr()
        separate[name] = own.clone() if address in addresses else own
        addresses.add(address)
    return safetensors.torch.save(separate)
