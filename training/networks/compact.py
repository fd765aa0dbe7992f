"""A small CNN that learns fast: the lecture's layers, arranged as in the fastest published trainings of CIFAR-10.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evalmode.images.pixels import Pixels
from training.errors import NetworkError
from training.networks.architecture import Architecture
from training.networks.inputs import scale_pixels

if TYPE_CHECKING:
    from training.datasets import Dataset
    from training.recipe import Recipe

FILTERS = (16, 64, 72)  # of the three blocks, at width 1
CONVOLUTIONS = (2, 2, 4)  # in each block; the last block has so few positions that more convolutions cost little
DIRECTIONS = 8  # the principal directions that are used, of the 12 of 2x2 RGB patches; the others are mostly noise
MIN_SIDE = 8  # pixels
LARGE_SIDE = 33  # from this size on the first convolution has stride 2: a quarter of the positions, no pixel unused
WHITENING_EPS = 5e-4  # added to each variance, so that directions without signal are not amplified
WHITENING_PIXELS = 2**21  # the filters are computed from at most this many pixels, which gives precision enough
STEPS_AN_EPOCH = 40  # at least, which makes the batches of a small data set smaller


class Compact(nn.Module):
    """A frozen whitening convolution, three blocks, global max pooling and a dense layer.

    The filters of the first convolution are not learned. ``whiten`` computes them from the training images: the
    principal directions of their 2x2 patches, each scaled to variance 1, and each with both signs because ReLU removes
    one of them. The input of the blocks is therefore decorrelated and of one scale, which allows learning rates at
    which the training would otherwise diverge.
    Sources: Page, How to Train Your ResNet 8; Jordan, 94% on CIFAR-10 in 3.29 Seconds (2404.00498), sections 3.1, 3.2.

    Args:
        channels: 3 (RGB) or 1 (grey).
        height: The height of the images in pixels, at least 8.
        width: Their width in pixels, at least 8.
        classes: The number of labels.
        factor: The factor of the number of filters in each block; 2 costs about 3.5 times as much.
        dropout: The share of the last features that are set to 0 in training, in [0, 1).

    Raises:
        NetworkError: The images are too small.
    """

    first_learned = "blocks.0.conv1"  # the first convolution with learned weights

    def __init__(
        self, channels: int, height: int, width: int, classes: int, factor: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        side = min(height, width)
        if side < MIN_SIDE:
            raise NetworkError(
                f"images of {height}x{width} are too small for the compact network, which halves them three times: "
                f"at least {MIN_SIDE}x{MIN_SIDE} is needed"
            )
        directions = min(DIRECTIONS, channels * 2 * 2)
        self.whitening = nn.Conv2d(channels, 2 * directions, 2, stride=2 if side >= LARGE_SIDE else 1, bias=False)
        self.whitening.requires_grad_(False)
        filters = [2 * directions, *(round(count * factor) for count in FILTERS)]
        blocks = []
        height, width = ((size - 2) // self.whitening.stride[0] + 1 for size in (height, width))
        for (before, after), convolutions in zip(pairwise(filters), CONVOLUTIONS, strict=True):
            pool = min(2, height), min(2, width)  # of an 8x8 image one pixel is left before the last block
            blocks.append(Block(before, after, pool, convolutions))
            height, width = height // pool[0], width // pool[1]
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(filters[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits, float32 (N, K), from images, float32 (N, C, H, W) in [-1, 1]."""
        features = self.blocks(nn.functional.relu(self.whitening(x)))  # (N, 72, about H / 8, about W / 8)
        logits: Tensor = self.dense(self.dropout(features.amax((2, 3))))
        return logits

    @torch.no_grad()
    def see_filters(self) -> Tensor:
        """Compute the filters of the image that the first learned convolution and the whitening amount to.

        The whitening's output goes through ReLU, once with each sign, and ReLU(x) - ReLU(-x) = x. A filter's response
        to both signs of a direction therefore has a linear part: half the difference of its two weights. Together with
        the whitening, the linear part is one convolution of the image.

        Returns:
            float32 (filters, C, H, W).
        """
        positive, negative = self.get_parameter(self.first_learned + ".weight").chunk(2, dim=1)
        directions, _ = self.whitening.weight.chunk(2)
        return nn.functional.conv_transpose2d((positive - negative) / 2, directions, stride=self.whitening.stride)

    @torch.no_grad()
    def whiten(self, x: Tensor) -> None:
        """Compute the filters of the first convolution from training images.

        Args:
            x: float32 (N, C, H, W) in [-1, 1]; a few thousand images are enough.
        """
        patches = nn.functional.unfold(x, kernel_size=2).transpose(1, 2).flatten(0, 1).double()  # (patches, C * 4)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + WHITENING_EPS).sqrt()).T.view(-1, x.shape[1], 2, 2)[-DIRECTIONS:]
        self.whitening.weight.copy_(torch.cat([filters, -filters]))


class Block(nn.Sequential):
    """Convolutions, each followed by batch norm and GELU; the first also by max pooling, which halves the image.

    The convolutions have no bias because batch norm would subtract it. Pooling comes before batch norm, so that batch
    norm and GELU cost a quarter. The output is float32 (N, filters, H // pool height, W // pool width).

    Args:
        channels: The channels of the input, float32 (N, channels, H, W).
        filters: The filters of each convolution.
        pool: Height and width of the pooling window.
        convolutions: The number of convolutions.
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


def _build(name: str, shape: tuple[int, int, int], classes: int, factor: float, dropout: float) -> Compact:
    height, width, channels = shape
    return Compact(channels, height, width, classes, factor, dropout)


def _fit_recipe(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Give a small data set enough steps, shift in proportion to the image size, and do not mirror characters."""
    side = min(dataset.contract.height, dataset.contract.width)
    return replace(
        recipe,
        epochs=11,
        batch_size=min(512, max(32, len(dataset.train) // STEPS_AN_EPOCH)),
        optimizer="muon",
        learning_rate=0.1,
        label_smoothing=0.1,
        dropout=0.0,
        mirror=not dataset.has_characters,
        shift=side // 14,
    )


def _whiten(network: Compact, images_nhwc: Pixels) -> None:
    """Compute the whitening filters from some of the training images."""
    every = -(-images_nhwc[..., 0].size // WHITENING_PIXELS)
    network.whiten(scale_pixels(torch.from_numpy(images_nhwc[::every])))


def _list_filters(network: Compact) -> dict[str, Tensor]:
    return {f"{network.first_learned}, seen through whitening": network.see_filters()}


COMPACT = Architecture(Compact, _build, _fit_recipe, _whiten, _list_filters)
