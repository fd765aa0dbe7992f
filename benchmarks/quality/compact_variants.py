"""Variants of the compact network, each without a part of it or with another one, for benchmarks/quality/ladder.py.

``evalmode train DATA --network benchmarks.quality.compact_variants:use_relu`` trains one, as any network of the user's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.networks.compact import Block, Compact


class LearnedFirstLayer(Compact):
    """The compact network without whitening: the first convolution is learned like the others."""

    @torch.no_grad()
    def whiten(self, x: Tensor) -> None:
        """Keep the random initial weights, and let them be learned."""
        self.whitening.requires_grad_(True)


class Residual(nn.Sequential):
    """A block that adds the input of every convolution but the first to its output."""

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 (N, C, H, W) as ``Block`` does."""
        layers = list(self)
        for layer in layers[:4]:
            x = layer(x)
        for convolution, norm, activation in zip(layers[4::3], layers[5::3], layers[6::3], strict=True):
            x = activation(x + norm(convolution(x)))
        return x


def learn_first_layer(channels: int, height: int, width: int, classes: int) -> Compact:
    """Build one whose first convolution is learned."""
    return LearnedFirstLayer(channels, height, width, classes)


def use_relu(channels: int, height: int, width: int, classes: int) -> Compact:
    """Build one with ReLU instead of GELU in the blocks."""
    return exchange(Compact(channels, height, width, classes), nn.GELU, lambda _: nn.ReLU())


def use_average_pooling(channels: int, height: int, width: int, classes: int) -> Compact:
    """Build one with average instead of max pooling in the blocks."""
    network = Compact(channels, height, width, classes)
    return exchange(network, nn.MaxPool2d, lambda pool: nn.AvgPool2d(get_window(pool)))


def start_as_identity(channels: int, height: int, width: int, classes: int) -> Compact:
    """Build one whose convolutions are initialized as the identity (dirac initialization)."""
    network = Compact(channels, height, width, classes)
    for layer in network.blocks.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight.data[: layer.in_channels])
    return network


def add_input(channels: int, height: int, width: int, classes: int) -> Compact:
    """Build one with residual connections in its blocks."""
    network = Compact(channels, height, width, classes)
    for number, block in enumerate(network.blocks):
        network.blocks[number] = Residual(OrderedDict(block.named_children()))
    return network


def widen_last_block(channels: int, height: int, width: int, classes: int) -> Compact:
    """Build one with two convolutions of 88 filters in the last block, instead of four of 72."""
    network, filters = Compact(channels, height, width, classes), 88
    pool = network.blocks[-1].get_submodule("pool")
    inputs = network.blocks[-1].get_parameter("conv1.weight").shape[1]
    network.blocks[-1] = Block(inputs, filters, get_window(pool), 2)
    network.dense = nn.Linear(filters, classes)
    return network


def get_window(pool: nn.Module) -> tuple[int, int]:
    """Return height and width of the window of a block's max pooling."""
    assert isinstance(pool, nn.MaxPool2d)
    assert isinstance(pool.kernel_size, tuple)
    return pool.kernel_size


def exchange(network: Compact, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> Compact:
    """Exchange all layers of one kind in the blocks of a network.

    Args:
        network: The network, changed in place.
        kind: The class of the layers.
        make: Makes the new layer from the old one.

    Returns:
        The network.
    """
    for block in network.blocks:
        for name, layer in list(block.named_children()):
            if isinstance(layer, kind):
                setattr(block, name, make(layer))
    return network
