"""A tiny network with the layers of EfficientNet-Lite and the head of a pretrained network, trained on features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from evalmode.images.pixels import Pixels
from training.datasets import Dataset, Split
from training.networks import PretrainedNetwork, scale_pixels
from training.networks.backbone import Backbone
from training.networks.same_padding import SameConv2d
from training.recipe import Recipe
from training.run import BEST, EXACT, INITIAL, Run

NETWORK = f"{__name__}:build"
FEATURES = 24


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
        for norm in [layer for layer in stages.modules() if isinstance(layer, nn.BatchNorm2d)]:
            norm.momentum = 1.0
            nn.init.uniform_(norm.bias, -0.5, 0.5)
        with torch.no_grad():
            stages(torch.rand(16, channels, height, width))
    return Backbone(list(stages), FEATURES, (0.5,) * channels, (0.25,) * channels)


def train_head(run: Run, dataset: Dataset) -> None:
    """Fit the head by least squares, as a training without fine-tuning would; the moments of the features are exact."""
    network = run.config.build_network().eval()
    assert isinstance(network, PretrainedNetwork)
    run.save_weights(network, INITIAL)
    features = extract(network, dataset.train.images)
    norm, dense = network.head.norm, network.head.dense
    with torch.no_grad():
        moments = {"running_mean": features.mean(0), "running_var": features.var(0, correction=0)}
        norm.load_state_dict(norm.state_dict() | moments)
        inputs = norm(features.float())
        wanted = 4 * nn.functional.one_hot(torch.from_numpy(dataset.train.targets)).float() - 4 / len(dataset.labels)
        dense.weight.copy_(torch.linalg.lstsq(inputs.double(), wanted.double()).solution.T)
        dense.bias.zero_()
    for which in (BEST, EXACT):
        run.save_weights(network, which)


@torch.no_grad()
def extract(network: PretrainedNetwork, images: Pixels) -> Tensor:
    return network.extract(scale_pixels(torch.from_numpy(images))).double()


def enlarge(split: Split, factor: int) -> Split:
    """Images of ``factor`` times as many rows and columns."""
    return Split(np.kron(split.images, np.ones((1, factor, factor, 1), np.uint8)), split.targets)


def make_recipe() -> Recipe:
    return Recipe(network=NETWORK, epochs=1)
