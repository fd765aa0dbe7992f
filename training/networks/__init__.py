"""The networks that can be trained, by name: ours, and any that the user brings.

Shapes: N images, C channels, H height, W width, K classes. Pixels are (N, H, W, C), networks take (N, C, H, W).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.errors import NetworkError
from training.networks.compact import Compact
from training.networks.reference import Reference

NETWORKS = {"compact": Compact, "reference": Reference}


def scale_pixels(pixels_nhwc: Tensor) -> Tensor:
    """Pixels as the networks want them: uint8 (N, H, W, C) in 0..255 -> float32 (N, C, H, W) in [-1, 1]."""
    return pixels_nhwc.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0


def build_network(name: str, shape: tuple[int, int, int], classes: int, factor: float, dropout: float) -> nn.Module:
    """Build a network, freshly initialised.

    Args:
        name: one of ``NETWORKS``, or ``package.module:function`` for the user's own. The function is called as
            ``function(channels, height, width, classes)`` and returns a module that turns float32 (N, C, H, W) in
            [-1, 1] into logits (N, K).
        shape: height, width and channels of the images.
        classes: labels.
        factor: of the number of filters; 1 for the user's own.
        dropout: share of units set to 0 in training; 0 for the user's own.

    Raises:
        NetworkError: no such network, images too small for it, or one that does not return logits.
    """
    height, width, channels = shape
    if name in NETWORKS:
        return NETWORKS[name](channels, height, width, classes, factor, dropout)
    if ":" not in name:
        raise NetworkError(f"no network {name!r}: choose {', '.join(NETWORKS)} or your own as package.module:function")
    network = _import_function(name)(channels, height, width, classes)
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{name} returned a {type(network).__name__}, not a torch.nn.Module")
    _check_logits(name, network, (2, channels, height, width), classes)
    return network


def _import_function(name: str) -> Callable[[int, int, int, int], object]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise NetworkError(f"--network {name} cannot be imported: {error}") from error
    if not callable(found):
        raise NetworkError(f"--network {name} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _check_logits(name: str, network: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    """Ask a user's network once, so that a wrong shape is said before an epoch is spent on it."""
    was_training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise NetworkError(f"{name} fails on images of shape {shape}: {error}") from error
    finally:
        network.train(was_training)
    if not isinstance(logits, Tensor) or logits.shape != (shape[0], classes) or logits.dtype != torch.float32:
        answer = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise NetworkError(f"{name} returns {answer} for images of shape {shape}, not float32 {(shape[0], classes)}")


def count_multiply_adds(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiplications with an addition that one image of a shape (height, width, channels) costs."""
    height, width, channels = shape
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros((1, channels, height, width), device=next(network.parameters()).device))
    return int(counter.get_total_flops()) // 2
