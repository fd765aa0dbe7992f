"""Tensors as the bytes of a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from training.errors import RunError


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, by name.

    Args:
        path: Path of the file.

    Returns:
        Tensors on the CPU.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        return safetensors.torch.load(path.read_bytes())  # load_file fails on a path that is not UTF-8
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} cannot be loaded: {error}") from error


def describe_difference(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Describe why saved weights do not fit a network, by names and shapes.

    Args:
        network: The network that the weights are loaded into.
        weights: The saved weights and buffers, by name.

    Returns:
        A sentence; "" if they fit.
    """
    saved = {(name, tuple(tensor.shape)) for name, tensor in weights.items()}
    present = {(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    if present == saved:
        return ""
    name, shape = min(present ^ saved)
    where = "present network" if (name, shape) in present else "file"
    return (
        f"it is of another network: {name} {shape} is only in the {where}. Use the code that the run was trained with"
    )
