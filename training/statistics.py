"""Batch norm's statistics as the training images really have them, in place of moving averages, which lag.

A layer's statistics depend on what the layers above it give, and those give something else in eval mode than in train
mode. So the layers are taken one after another, each with those above it already in their final form. Then every layer
normalises by the moments of what it will see when it serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from serving.pixels import Pixels
from training.datasets import Split
from training.networks import scale_pixels
from training.ranks import ALONE, Ranks
from training.train import split_evaluation

MOST_IMAGES = 8_192  # a mean over as many is off by about a hundredth of a standard deviation


@dataclass(frozen=True)
class Correction:
    """How far a layer's moving averages were from the statistics of the training images.

    Attributes:
        layer: its name in the network.
        mean: difference of the means in standard deviations, root mean square over channels.
        std: difference of the logarithms of the standard deviations, likewise.
    """

    layer: str
    mean: float
    std: float


def choose_images(split: Split) -> Pixels:
    """The training images that statistics are computed from, uint8 (N, H, W, C)."""
    return split.images[:: -(-len(split) // MOST_IMAGES)]


class _Seen(Exception):
    """A layer was reached; what comes after it does not matter."""


@torch.no_grad()
def recompute_statistics(network: nn.Module, split: Split, ranks: Ranks = ALONE) -> list[Correction]:
    """Replace the moving mean and variance of every batch norm by those over all images, in place; ends in eval mode.

    A layer that a network calls more than once gets those of its first call, and the export will refuse it.

    Args:
        network: on any device.
        split: the training images, as they are: not augmented. Of more than ``MOST_IMAGES`` some are taken, evenly.
        ranks: the processes that share the images; all end with the same bits.

    Returns:
        How far off each layer was, in the order in which they are called.
    """
    network.eval()
    names = {layer: name for name, layer in network.named_modules()}
    corrections = []
    device = next(network.parameters()).device
    for layer in _list_layers(network, scale_pixels(torch.from_numpy(split.images[:2])).to(device)):
        sums = torch.zeros(3, layer.num_features, dtype=torch.float64, device=device)  # of ones, values, their squares
        for seen in _watch(network, layer, choose_images(split)[ranks.share], device):
            variance, mean = torch.var_mean(seen, [a for a in range(seen.ndim) if a != 1], correction=0)
            values = seen.numel() // len(mean)
            mean = mean.double()
            sums += values * torch.stack([torch.ones_like(mean), mean, variance.double() + mean.square()])
        count, total, squares = ranks.sum(sums)
        mean = total / count
        assert layer.running_mean is not None  # as _list_layers chose it
        assert layer.running_var is not None
        variance = (squares / count - mean.square()).clamp_min(0)
        std = variance.add(layer.eps).sqrt()
        off_mean = (layer.running_mean - mean) / std
        off_std = (layer.running_var.double() + layer.eps).sqrt().log() - std.log()
        corrections.append(
            Correction(names[layer], *(off.square().mean().sqrt().item() for off in (off_mean, off_std)))
        )
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    return corrections


def _list_layers(network: nn.Module, x: Tensor) -> list[BatchNorm]:
    """The batch norms that keep statistics, in the order in which they are first called."""
    called: dict[BatchNorm, None] = {}
    layers = [m for m in network.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]
    hooks = [layer.register_forward_pre_hook(lambda layer, _: called.setdefault(layer)) for layer in layers]
    network(x)
    for hook in hooks:
        hook.remove()
    return list(called)


def _watch(network: nn.Module, layer: BatchNorm, images_nhwc: Pixels, device: torch.device) -> Iterator[Tensor]:
    """What a layer is given, batch by batch; the network runs no further than to it."""
    given: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Tensor]) -> None:
        given.append(inputs[0])
        raise _Seen

    hook = layer.register_forward_pre_hook(stop)
    try:
        for images in split_evaluation(images_nhwc):
            try:
                network(scale_pixels(torch.from_numpy(images).to(device)))
            except _Seen:
                yield given.pop()
    finally:
        hook.remove()
