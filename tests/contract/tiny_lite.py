"""Tiny networks with the head of a pretrained network, trained on features: one with the layers of EfficientNet-Lite,
and one of timm.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from evalmode.images.pixels import Pixels
from training.datasets import Dataset, Split
from training.head import HeadExamples, fit_dense, set_moments
from training.networks import PretrainedNetwork, scale_pixels
from training.networks.backbone import Backbone
from training.networks.same_padding import SameConv2d
from training.recipe import Recipe
from training.run import BEST, EXACT, INITIAL, Run

NETWORK = f"{__name__}:build"
OF_TIMM = "timm:test_byobnet"
FEATURES = 24
PENALTY = 0.1


class Block(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, projection, and the sum with the input."""

    def __init__(self, filters: int, wide: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(filters, wide, 1, bias=False), nn.BatchNorm2d(wide, 1e-3), nn.ReLU6())
        depthwise = SameConv2d(wide, wide, 3, groups=wide, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(wide, 1e-3), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(wide, filters, 1, bias=False), nn.BatchNorm2d(filters, 1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.depthwise(self.expand(x)))


def build(channels: int, height: int, width: int, classes: int) -> Backbone:
    """A backbone whose weights are drawn, and whose statistics are those of drawn images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = nn.Sequential(SameConv2d(channels, 8, 3, 2, bias=False), nn.BatchNorm2d(8, 1e-3), nn.ReLU6())
        last = nn.Sequential(nn.Conv2d(8, FEATURES, 1, bias=False), nn.BatchNorm2d(FEATURES, 1e-3), nn.ReLU6())
        stages = nn.Sequential(stem, Block(8, 24), last)
        draw_statistics(stages, torch.rand(16, channels, height, width))
    return Backbone(list(stages), FEATURES, (0.4,) * channels, (0.25,) * channels)


@torch.no_grad()
def draw_statistics(stages: nn.Sequential, x: Tensor) -> None:
    """Draw the shifts of batch norm layers, and set their statistics to those of a batch, float32 (N, C, H, W)."""
    for norm in [layer for layer in stages.modules() if isinstance(layer, nn.BatchNorm2d)]:
        norm.momentum = 1.0
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    stages.train()(x)


def build_network(run: Run, images: Pixels) -> PretrainedNetwork:
    """Build the network of a run; one of timm gets drawn weights and the statistics of images, as if pretrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = run.config.build_network()
        assert isinstance(network, PretrainedNetwork)
        if run.config.recipe.network == OF_TIMM:
            draw_statistics(nn.Sequential(*network.stages), network.scale(scale_pixels(torch.from_numpy(images))))
    return network.eval()


def train_head(run: Run, network: PretrainedNetwork, dataset: Dataset) -> None:
    """Train the head of a network, and save the run as a training without fine-tuning does: after the head."""
    examples = HeadExamples(extract(network, dataset.train.images), torch.from_numpy(dataset.train.targets))
    set_moments(network.head, examples.features)
    fit_dense(network.head, examples, PENALTY)
    for which in (INITIAL, BEST, EXACT):
        run.save_weights(network, which)


@torch.no_grad()
def extract(network: PretrainedNetwork, images: Pixels) -> Tensor:
    return network.extract(scale_pixels(torch.from_numpy(images)))


def enlarge(split: Split, rows: int, columns: int) -> Split:
    """Images of ``rows`` times as many rows and ``columns`` times as many columns."""
    return Split(np.kron(split.images, np.ones((1, rows, columns, 1), np.uint8)), split.targets)


def make_recipe(network: str) -> Recipe:
    return Recipe(network=network, epochs=1)
