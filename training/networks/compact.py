"""A small CNN that learns fast: the lecture's layers, arranged as the fastest trainers of CIFAR-10 arrange them.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.errors import NetworkError

FILTERS = (16, 64, 72)  # of the three blocks, at width 1
CONVOLUTIONS = (2, 2, 4)  # in each block: the last sees so few positions that more of them cost little
DIRECTIONS = 8  # of the 12 in which 2x2 patches of RGB differ, the strongest: the others hold mostly noise
SMALLEST_SIDE = 8
LARGE_SIDE = 33  # from here on the first convolution has stride 2: four times fewer positions, no value lost
WHITENING_EPS = 5e-4  # added to each variance, so that directions without signal are not blown up


class Compact(nn.Module):
    """A frozen whitening convolution, three blocks, the largest value of each feature map, a dense layer.

    The first convolution's filters are not learned but computed from the training images by ``whiten``: the principal
    directions of their 2x2 patches, each scaled to variance 1, with both signs, as ReLU cuts one of them off.
    What the blocks see is decorrelated and of one scale, which lets them learn at rates at which they would explode.
    Sources: Page, How to Train Your ResNet 8; Jordan, 94% on CIFAR-10 in 3.29 Seconds (2404.00498), sections 3.1, 3.2.

    Args:
        channels: 3 (RGB) or 1 (grey).
        height: pixels, at least 8.
        width: pixels, at least 8.
        classes: labels.
        factor: of the number of filters in each block; 2 costs about 3.5 times as much.
        dropout: share of the last features set to 0 in training.
    """

    first_learned = "blocks.0.conv1"  # the name of the first convolution that is learned

    def __init__(
        self, channels: int, height: int, width: int, classes: int, factor: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        side = min(height, width)
        if side < SMALLEST_SIDE:
            raise NetworkError(
                f"images of {height}x{width} are too small for the compact network: at least "
                f"{SMALLEST_SIDE}x{SMALLEST_SIDE}, since it halves them three times"
            )
        directions = min(DIRECTIONS, channels * 2 * 2)
        self.whitening = nn.Conv2d(channels, 2 * directions, 2, stride=2 if side >= LARGE_SIDE else 1, bias=False)
        self.whitening.requires_grad_(False)
        filters = [2 * directions, *(round(count * factor) for count in FILTERS)]
        blocks = []
        height, width = ((size - 2) // self.whitening.stride[0] + 1 for size in (height, width))
        for (before, after), convolutions in zip(pairwise(filters), CONVOLUTIONS, strict=True):
            pool = min(2, height), min(2, width)  # an 8x8 image has one pixel left before the last block
            blocks.append(Block(before, after, pool, convolutions))
            height, width = height // pool[0], width // pool[1]
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(filters[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, C, H, W) in [-1, 1] -> logits (N, K)."""
        features = self.blocks(nn.functional.relu(self.whitening(x)))  # (N, 72, about H / 8, about W / 8)
        logits: Tensor = self.dense(self.dropout(features.amax((2, 3))))
        return logits

    @torch.no_grad()
    def see_filters(self) -> Tensor:
        """What the first learned convolution looks for in the image, behind the whitening: (filters, C, H, W).

        ReLU of a value less ReLU of its negative is the value itself. So what a filter makes of both signs of a
        direction has a linear part, half the difference of its weights for them, and together with the whitening that
        is one convolution of the image.
        """
        positive, negative = self.get_parameter(self.first_learned + ".weight").chunk(2, dim=1)
        directions, _ = self.whitening.weight.chunk(2)
        return nn.functional.conv_transpose2d((positive - negative) / 2, directions, stride=self.whitening.stride)

    @torch.no_grad()
    def whiten(self, x: Tensor) -> None:
        """Compute the first convolution from training images.

        Args:
            x: float32 (N, C, H, W) in [-1, 1]; a few thousand are enough.
        """
        patches = nn.functional.unfold(x, kernel_size=2).transpose(1, 2).flatten(0, 1).double()  # (patches, C * 4)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + WHITENING_EPS).sqrt()).T.view(-1, x.shape[1], 2, 2)[-DIRECTIONS:]
        self.whitening.weight.copy_(torch.cat([filters, -filters]))


class Block(nn.Sequential):
    """Convolutions, each followed by batch norm and GELU, the first also by max pooling, which halves the image.

    They have no bias: batch norm would subtract it. Pooling comes before batch norm, so that normalising and
    activating cost a quarter. (N, channels, H, W) -> (N, filters, H // pool, W // pool).
    """

    def __init__(self, channels: int, filters: int, pool: tuple[int, int], convolutions: int) -> None:
        layers = OrderedDict[str, nn.Module]()
        for number in range(1, convolutions + 1):
            layers[f"conv{number}"] = nn.Conv2d(channels if number == 1 else filters, filters, 3, padding=1, bias=False)
            if number == 1:
                layers["pool"] = nn.MaxPool2d(pool)
            layers[f"norm{number}"] = nn.BatchNorm2d(filters)
            layers[f"gelu{number}"] = nn.GELU()
        super().__init__(layers)
