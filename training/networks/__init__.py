"""The networks that can be trained: those in ``NETWORKS``, those of timm, and any that the user provides as a function.

To add a network, write a module with its class and its ``Architecture``, and add that to ``NETWORKS``.

Shapes: N images, C channels, H height, W width, K classes. Pixels are (N, H, W, C), networks take (N, C, H, W).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.errors import NetworkError
from training.networks.architecture import Architecture
from training.networks.compact import COMPACT
from training.networks.efficientnet_lite import EFFICIENTNET_LITE, VARIANTS
from training.networks.failures import explain, explain_errors, list_causes
from training.networks.inputs import lay_out, make_inputs, scale_pixels
from training.networks.outputs import check_logits, check_network
from training.networks.own import OWN
from training.networks.pretrained import PretrainedNetwork
from training.networks.reference import REFERENCE
from training.networks.timm import PREFIX, TIMM

__all__ = [
    "NETWORKS",
    "Architecture",
    "PretrainedNetwork",
    "build_network",
    "check_logits",
    "check_network",
    "count_multiply_adds",
    "explain",
    "explain_errors",
    "get_architecture",
    "lay_out",
    "list_causes",
    "make_inputs",
    "recognise_architecture",
    "scale_pixels",
]

NETWORKS: dict[str, Architecture[Any]] = {
    "compact": COMPACT,
    "reference": REFERENCE,
    **dict.fromkeys(VARIANTS, EFFICIENTNET_LITE),
}


def get_architecture(name: str) -> Architecture[Any]:
    """Return the architecture with a name.

    Args:
        name: A name in ``NETWORKS``, ``timm:NAME`` for a network of timm, or ``package.module:function`` for a network
            of the user's, which is not imported.

    Raises:
        NetworkError: There is no network of this name.
    """
    if name not in NETWORKS and ":" not in name:
        raise NetworkError(
            f"no network {name!r}: choose {', '.join(NETWORKS)}, timm:NAME, or your own as package.module:function"
        )
    return NETWORKS.get(name, TIMM if name.startswith(PREFIX) else OWN)


def recognise_architecture(network: nn.Module) -> Architecture[Any]:
    """Return the architecture of a network that is built; for one of timm, that of a network of the user's."""
    return next((one for one in NETWORKS.values() if isinstance(network, one.module)), OWN)


def build_network(name: str, shape: tuple[int, int, int], classes: int, factor: float, dropout: float) -> nn.Module:
    """Build a network with new weights.

    Args:
        name: A name in ``NETWORKS``, ``timm:NAME``, or ``package.module:function`` for the user's own. The function is
            called as ``function(channels, height, width, classes)`` and returns an ``evalmode.Backbone``, or a module
            that takes float32 (N, C, H, W) in [-1, 1] and returns logits, float32 (N, K).
        shape: Height, width and channels of the images.
        classes: The number of labels.
        factor: The factor of the number of filters; not used for the user's own.
        dropout: The share of units that are set to 0 in training, in [0, 1); of the user's own only for the head of a
            backbone.

    Returns:
        The network, on the CPU and in train mode.

    Raises:
        NetworkError: There is no such network, the images are too small for it, or it cannot be built.
    """
    network: nn.Module = get_architecture(name).build(name, shape, classes, factor, dropout)
    return network


def count_multiply_adds(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count the multiply-add operations of a forward pass of one image.

    Args:
        network: The network; it is put into eval mode.
        shape: Height, width and channels of the image.

    Returns:
        The number of multiplications that are followed by an addition.
    """
    height, width, channels = shape
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()
        network(torch.zeros((1, channels, height, width), device=next(network.parameters()).device))
    return int(counter.get_total_flops()) // 2
