"""Files of pretrained weights: read with a checksum, and loaded into the modules that they belong to."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from training.errors import NetworkError


def read_weights(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Read a file of weights. No code in it is executed.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote.
        sha256: The checksum that the file must have, as hexadecimal digits; None for a file that the user chose.

    Returns:
        The tensors by name, and a description of the file: its name and ``sha256:...``.

    Raises:
        NetworkError: The file cannot be read, has another checksum, or does not hold tensors by name.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NetworkError(f"the weights {path} cannot be read: {error.strerror or error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, digest):
        raise NetworkError(
            f"{path} is not the published file: its sha256 is {digest}, not {sha256}. Install its package again"
        )
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load(content)
        else:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise a dozen types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError(f"{path} holds no weights that can be read safely: {reason}") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(one, Tensor) for one in tensors.values()):
        raise NetworkError(
            f"{path} holds something other than tensors by name: save the state_dict of the network, "
            "torch.save(network.state_dict(), FILE)"
        )
    return dict(tensors), f"{path.name} sha256:{digest}"


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a module; tensors that it does not have, such as those of a classifier, are ignored.

    Args:
        module: The module, changed in place.
        tensors: The weights and buffers by name.
        source: Where they come from and for which network, for messages.

    Raises:
        NetworkError: A tensor is missing or has another shape.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    if missing:
        raise NetworkError(f"{source}: {len(missing)} of {len(wanted)} tensors are missing, such as {missing[0]}")
    for name, tensor in wanted.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            raise NetworkError(f"{source}: {name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}")
    module.load_state_dict(wanted | {name: tensors[name] for name in wanted if name in tensors})
