"""Checks of what a network returns.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.errors import NetworkError
from training.networks.failures import explain_errors


def check_network(name: str, network: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
    """Run a network in eval mode, and check that it returns logits: its code may have changed since it was trained.

    Args:
        name: The name of the network, for messages.
        network: The network, on the CPU; it is left in eval mode.
        shape: Height, width and channels of the images.
        classes: The number of labels.

    Raises:
        NetworkError: It fails, or it does not return a float32 tensor (N, classes).
    """
    height, width, channels = shape
    images = torch.zeros((2, channels, height, width))
    with explain_errors(name, f"in eval mode on images of shape {tuple(images.shape)}"), torch.no_grad():
        network.eval()  # not chained to the call: train() of a user's network may return None
        logits = network(images)
    check_logits(name, logits, tuple(images.shape), classes, "")


def check_logits(name: str, logits: object, shape: tuple[int, ...], classes: int, mode: str) -> None:
    """Check that a network returns logits that can be trained on.

    Args:
        name: The name of the network, for messages.
        logits: What it returned.
        shape: The shape of the images that were passed to it, (N, C, H, W).
        classes: The number of labels.
        mode: The mode of the network, as words to put before "returns"; "" for eval mode.

    Raises:
        NetworkError: It did not return a float32 tensor (N, classes).
    """
    wanted = f"for images of shape {shape}, not float32 {(shape[0], classes)}"
    if not isinstance(logits, Tensor):
        hint = "; auxiliary outputs are not trained: return the logits alone" if mode else ""
        raise NetworkError(f"{name} {mode}returns {type(logits).__name__} {wanted}{hint}")
    if logits.shape != (shape[0], classes) or logits.dtype != torch.float32:
        raise NetworkError(f"{name} {mode}returns {logits.dtype} {tuple(logits.shape)} {wanted}")
