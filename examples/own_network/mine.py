"""Your own torch module, trained by evalmode: evalmode train photos --out run --network mine:build.

It takes float32 images (N, C, H, W) in [-1, 1] and returns logits (N, K). Needs the extras serve and train.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dense(nn.Module):
    """Three convolutions that each see all the maps before them, as in DenseNet; then means, and a dense layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, padding=1)
        self.convolutions = nn.ModuleList([self.make_block(16), self.make_block(32), self.make_block(48)])
        self.pool = nn.MaxPool2d(2)
        self.dense = nn.Linear(64, classes)
        self.recipe = {"learning_rate": 2e-3, "batch_size": 16}  # options of the command have precedence

    def make_block(self, inputs: int) -> nn.Module:
        """A convolution with batch norm: float32 (N, inputs, H, W) -> (N, 16, H, W)."""
        return nn.Sequential(nn.Conv2d(inputs, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, channels, H, W) in [-1, 1] -> logits (N, classes)."""
        maps = self.pool(self.stem(x))
        for convolution in self.convolutions:
            maps = self.pool(torch.cat([maps, convolution(maps)], dim=1))
        return self.dense(maps.mean((2, 3)))


def build(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """The function that evalmode calls, with the size of the images and the number of labels."""
    return Dense(channels, classes)
