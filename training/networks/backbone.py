"""Backbones: the pretrained part of a network, and what a head needs to know about it.

Shapes: N images, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from training.errors import NetworkError
from training.networks.pretrained import PretrainedNetwork

if TYPE_CHECKING:
    from training.datasets import Dataset
    from training.recipe import Recipe

VIEWS = 6  # of each training image: more cost time and disk space


class Scale(nn.Module):
    """Converts images from [-1, 1] to the range that a backbone was trained with, by one multiplication and addition.

    A grey image gets as many equal channels as there are means.

    Args:
        mean: The mean of each channel that the pretraining subtracted from values in [0, 1].
        std: The standard deviation of each channel that it divided by.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, stds = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
        self.register_buffer("factor", (0.5 / stds).float())
        self.register_buffer("offset", ((0.5 - means) / stds).float())

    def forward(self, x: Tensor) -> Tensor:
        """Scale float32 (N, C, H, W); C is the number of means, or 1."""
        return x * self.factor + self.offset


class AveragePool(nn.Module):
    """Global average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, D, h, w) -> (N, D)."""
        return x.mean((2, 3))


@dataclass(frozen=True, eq=False)
class Backbone:
    """A pretrained backbone of the user's, which gets a new head.

    Its batch norm layers stay in eval mode. Features are computed once, and the head is trained on them; then the last
    stages are trained, too.

    Attributes:
        stages: The parts of the backbone in their order, with their pretrained weights. The first one takes images,
            float32 (N, C, H, W); each other takes the output of the one before. Fine-tuning starts at a stage.
        features: D, the number of features after pooling.
        mean: The mean of each channel that the pretraining subtracted from values in [0, 1]; of 3 channels by default
            those of ImageNet.
        std: The standard deviation of each channel that it divided by.
        pool: Converts the output of the last stage to features, float32 (N, D); by default the mean over height and
            width.
        recipe: Fields of ``training.recipe.Recipe`` with the values that this backbone needs, such as
            ``{"learning_rate": 1e-4}``. The options of the command replace them.
    """

    stages: Sequence[nn.Module]
    features: int
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    pool: nn.Module | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def attach_head(self, classes: int, dropout: float) -> PretrainedNetwork:
        """Build the network of this backbone with a new head.

        Args:
            classes: K.
            dropout: The share of the features that are set to 0 in training, in [0, 1).
        """
        pool = AveragePool() if self.pool is None else self.pool
        return PretrainedNetwork(Scale(self.mean, self.std), self.stages, pool, self.features, classes, dropout)


def check_backbone(name: str, network: PretrainedNetwork, shape: tuple[int, int, int]) -> None:
    """Check by an image of zeros that the stages of a backbone fit each other, the pooling, and the head.

    Args:
        name: The name of the network, for messages.
        network: The network, in eval mode.
        shape: Height, width and channels of the images.

    Raises:
        NetworkError: A stage does not return a tensor, or the features have another shape or type.
    """
    height, width, channels = shape
    with torch.no_grad():
        x = network.scale(torch.zeros((1, channels, height, width)))
        for number, stage in enumerate(network.stages, 1):
            x = stage(x)
            if not isinstance(x, Tensor):
                raise NetworkError(
                    f"--network {name}: stage {number} returns a {type(x).__name__}; each stage takes and returns one "
                    "tensor"
                )
        features = network.pool(x)
    wanted = (1, network.head.norm.num_features)
    if tuple(features.shape) != wanted or features.dtype != torch.float32:
        raise NetworkError(
            f"--network {name}: its features of one image are {features.dtype} {tuple(features.shape)}, not float32 "
            f"{wanted}"
        )


def fit_transfer_recipe(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Fit the recipe of every pretrained network to a data set: characters are not mirrored.

    Args:
        recipe: The recipe with default values.
        dataset: The data set.
    """
    return replace(
        recipe,
        epochs=8,
        batch_size=32,
        optimizer="adamw",
        learning_rate=4e-4,
        label_smoothing=0.1,
        dropout=0.2,
        views=VIEWS,
        mirror=not dataset.has_characters,
    )
