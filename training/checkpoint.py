"""Checkpoints after each epoch, from which an interrupted training resumes: safetensors and JSON, no pickle.

The random draws of an epoch depend only on the seed and the epoch. The state of a training is therefore its weights,
the state of its optimizers and the best epoch so far. The newest two checkpoints are kept. The JSON file is written
last and holds the SHA-256 of the safetensors file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from evalmode.files import write_atomically
from training.errors import NetworkError, RunError
from training.tensors import describe_difference, save_tensors

KEPT = 2
NETWORK = "network."


@dataclass(frozen=True)
class Epoch:
    """The figures of one pass over the training images.

    Attributes:
        epoch: Number of the epoch, from 1.
        loss: Mean loss over the pass, in train mode, on augmented images.
        train_accuracy: Accuracy over the pass, in train mode, on augmented images.
        val_accuracy: Accuracy on the validation images, in eval mode, with batch norm statistics close to those of the
            export.
        val_loss: Mean cross-entropy of the validation images, measured in the same way.
        learning_rate: Learning rate of the last step.
        seconds: Wall-clock time in seconds, validation included.
        warnings: The warnings of ``find_warnings``.
        layers: ``LayerStatistics`` of each batch norm layer on a sample of training images, after the pass.
        cross_entropy: Mean cross-entropy over the pass, which can be compared with ``val_loss``: ``loss`` without label
            smoothing and label weights. None if the run was recorded without it.
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
    cross_entropy: float | None = None


@dataclass(frozen=True)
class TrainingState:
    """The point that a training has reached, apart from its weights and the state of its optimizers.

    Attributes:
        epoch: Number of the last completed epoch; 0 before the first one ends.
        best: Figures of the best epoch so far; None before the first one ends.
        backed_off: Number of times that the learning rates were halved.
    """

    epoch: int = 0
    best: Epoch | None = None
    backed_off: int = 0


def save_checkpoint(
    folder: Path, network: nn.Module, optimizers: list[torch.optim.Optimizer], reached: TrainingState
) -> None:
    """Save the state of a training after an epoch, and delete all but the newest two checkpoints up to that epoch.

    Args:
        folder: The run folder.
        network: The network in training.
        optimizers: The optimizers that train it.
        reached: The progress after the epoch; its best epoch is set.

    Raises:
        OSError: A file cannot be written.
    """
    assert reached.best is not None
    tensors = {f"{NETWORK}{name}": tensor for name, tensor in network.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    content = save_tensors(tensors)
    path = folder / f"checkpoint-{reached.epoch}.safetensors"
    write_atomically(path, content)
    facts = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "best": asdict(reached.best),
        "backed_off": reached.backed_off,
    }
    write_atomically(path.with_suffix(".json"), json.dumps(facts))
    kept = {f"checkpoint-{one}" for one in [one for one in list_checkpoints(folder) if one <= reached.epoch][:KEPT]}
    for path in sorted(folder.glob("checkpoint-*")):  # the JSON first
        if path.stem not in kept:
            path.unlink()


def list_checkpoints(folder: Path) -> list[int]:
    """List the epochs that have a checkpoint in a run folder, the newest first."""
    found = (re.fullmatch(r"checkpoint-(\d+)\.json", path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def resume_checkpoint(
    folder: Path, network: nn.Module, optimizers: list[torch.optim.Optimizer], on_warning: Callable[[str], None]
) -> TrainingState:
    """Restore network and optimizers from the newest checkpoint that is not damaged.

    Args:
        folder: The run folder.
        network: The network to restore.
        optimizers: The optimizers to restore; halved learning rates stay halved.
        on_warning: Called about each damaged checkpoint.

    Returns:
        The progress at the checkpoint; that of a new training if there is none.

    Raises:
        NetworkError: The checkpoint belongs to another network.
    """
    for epoch in list_checkpoints(folder):
        try:
            reached = load_checkpoint(folder, epoch, network, optimizers)
        except RunError as error:
            on_warning(f"{error}; it is passed over")
        else:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["peak_lr"] /= 2**reached.backed_off
            return reached
    return TrainingState()


def load_checkpoint(
    folder: Path, epoch: int, network: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> TrainingState:
    """Restore the weights of a network and the state of its optimizers from the checkpoint of an epoch.

    Nothing is changed if the checkpoint is refused.

    Args:
        folder: The run folder.
        epoch: Number of the epoch, from 1.
        network: The network to restore.
        optimizers: The optimizers to restore.

    Returns:
        The progress at the checkpoint.

    Raises:
        RunError: The checkpoint is damaged.
        NetworkError: The checkpoint belongs to another network.
    """
    path = folder / f"checkpoint-{epoch}.safetensors"
    try:
        facts = json.loads(path.with_suffix(".json").read_text("utf-8"))
        best, backed_off = Epoch(**facts["best"]), int(facts["backed_off"])
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise ValueError("its SHA-256 differs from the one that was recorded")
        tensors = safetensors.torch.load(content)
        weights = {name.removeprefix(NETWORK): tensors.pop(name) for name in list(tensors) if name.startswith(NETWORK)}
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if difference := describe_difference(network, weights):
        raise NetworkError(f"{path} cannot be loaded: {difference}, or choose another --out")
    try:
        states = [_collect_state(tensors, number, optimizer) for number, optimizer in enumerate(optimizers)]
    except IndexError as error:
        raise NetworkError(
            f"{path} cannot be loaded: other weights were trained, or in another order. Use the code that the run was "
            "trained with, or choose another --out"
        ) from error
    network.load_state_dict(weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.state.update(state)
    return TrainingState(epoch, best, backed_off)


def _collect_state(
    tensors: dict[str, Tensor], number: int, optimizer: torch.optim.Optimizer
) -> dict[Tensor, dict[str, Tensor]]:
    """Collect the state of an optimizer by weight.

    Tensors get the memory layout of their weights, since the order of a sum, and so its rounding, depends on it.

    Raises:
        IndexError: The optimizer has no weights of that number and shape.
    """
    every = [weights for group in optimizer.param_groups for weights in group["params"]]
    state: dict[Tensor, dict[str, Tensor]] = {weights: {} for weights in every}
    for name, tensor in tensors.items():
        owner, index, key = name.split(".", 2)
        if owner == str(number):
            weights = every[int(index)]
            alike = tensor.shape == weights.shape
            if not alike and tensor.ndim:  # a scalar is a number of steps
                raise IndexError(index)
            state[weights][key] = torch.empty_like(weights, requires_grad=False).copy_(tensor) if alike else tensor
    return {weights: values for weights, values in state.items() if values}
