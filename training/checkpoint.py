"""Where a training stands after an epoch, so that it can go on after its process died: safetensors and JSON, no pickle.

Every draw of an epoch depends on the seed and the epoch alone, so weights, the optimizers' memory and the best epoch so
far are all that a training is. The newest two are kept; JSON is written last and says which bytes belong to it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from serving.files import write_atomically
from training.errors import NetworkError, RunError
from training.run import save_tensors, tell_difference

KEPT = 2
NETWORK = "network."


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        epoch: from 1.
        loss: mean loss over the pass, in train mode, on images as augmented.
        train_accuracy: share right over the pass, in train mode, on images as augmented.
        val_accuracy: share right of the validation images, in eval mode, with batch norm's statistics about as they
            will be exported.
        val_loss: mean cross-entropy of the validation images, likewise.
        learning_rate: at the last step.
        seconds: wall clock, validation included.
        warnings: of what goes wrong while numbers are numbers, as ``find_warnings`` tells.
        layers: what batch norm saw of a sample of training images, a ``LayerStatistics`` a layer, after the pass.
    """

    epoch: int
    loss: float
    train_accuracy: float
    val_accuracy: float
    val_loss: float
    learning_rate: float
    seconds: float
    warnings: list[str]
    layers: list[dict[str, Any]]


def save_checkpoint(
    folder: Path, epoch: int, network: nn.Module, optimizers: list[torch.optim.Optimizer], best: Epoch, backed_off: int
) -> None:
    """Keep where a training stands after an epoch, and forget all but the newest two up to it.

    Args:
        folder: of the run.
        epoch: after which.
        network: with its weights and statistics.
        optimizers: with what they remember.
        best: the best epoch so far.
        backed_off: how often the learning rates were halved.
    """
    tensors = {f"{NETWORK}{name}": tensor for name, tensor in network.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    content = save_tensors(tensors)
    path = folder / f"checkpoint-{epoch}.safetensors"
    write_atomically(path, content)
    told = {"sha256": hashlib.sha256(content).hexdigest(), "best": asdict(best), "backed_off": backed_off}
    write_atomically(path.with_suffix(".json"), json.dumps(told))
    kept = {f"checkpoint-{one}" for one in [one for one in list_checkpoints(folder) if one <= epoch][:KEPT]}
    for path in sorted(folder.glob("checkpoint-*")):  # the JSON first
        if path.stem not in kept:
            path.unlink()


def list_checkpoints(folder: Path) -> list[int]:
    """The epochs after which checkpoints were written, the newest first."""
    found = (re.fullmatch(r"checkpoint-(\d+)\.json", path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def load_checkpoint(
    folder: Path, epoch: int, network: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> tuple[Epoch, int]:
    """Put network and optimizers where they stood after an epoch; nothing is touched if the checkpoint is damaged.

    Returns:
        The best epoch so far, and how often the learning rates were halved.

    Raises:
        RunError: it is damaged.
        NetworkError: it is of another network.
    """
    path = folder / f"checkpoint-{epoch}.safetensors"
    try:
        told = json.loads(path.with_suffix(".json").read_text("utf-8"))
        best, backed_off = Epoch(**told["best"]), int(told["backed_off"])
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != told["sha256"]:
            raise ValueError("its bytes are not those that were written")
        tensors = safetensors.torch.load(content)
        weights = {name.removeprefix(NETWORK): tensors.pop(name) for name in list(tensors) if name.startswith(NETWORK)}
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if difference := tell_difference(network, weights):
        raise NetworkError(f"{path} cannot be loaded: {difference}, or give another --out")
    try:
        states = [_collect(tensors, number, optimizer) for number, optimizer in enumerate(optimizers)]
    except IndexError as error:
        raise NetworkError(
            f"{path} cannot be loaded: then other weights were learned, or had another order. Go on with the code that "
            "it was trained with, or give another --out"
        ) from error
    network.load_state_dict(weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.state.update(state)
    return best, backed_off


def _collect(
    tensors: dict[str, Tensor], number: int, optimizer: torch.optim.Optimizer
) -> dict[Tensor, dict[str, Tensor]]:
    """An optimizer's memory by its weights; laid out in memory as they are, since sums depend on the order."""
    every = [weights for group in optimizer.param_groups for weights in group["params"]]
    state: dict[Tensor, dict[str, Tensor]] = {weights: {} for weights in every}
    for name, tensor in tensors.items():
        owner, index, key = name.split(".", 2)
        if owner == str(number):
            weights = every[int(index)]
            alike = tensor.shape == weights.shape
            if not alike and tensor.ndim:  # but for a count of steps
                raise IndexError(index)
            state[weights][key] = torch.empty_like(weights, requires_grad=False).copy_(tensor) if alike else tensor
    return {weights: memory for weights, memory in state.items() if memory}
