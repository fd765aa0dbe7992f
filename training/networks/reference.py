"""The lecture's CNN with Keras' semantics.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from training.errors import NetworkError
from training.networks.architecture import Architecture
from training.networks.same_padding import SameConv2d

if TYPE_CHECKING:
    from training.datasets import Dataset
    from training.recipe import Recipe

BATCH_NORM_EPS = 1e-3  # Keras' default; torch's is 1e-5
BATCH_NORM_MOMENTUM = 0.01  # the weight of the new value, where Keras' .99 is that of the old one; torch's is 0.1
NEGATIVE_SLOPE = 0.3  # of LeakyReLU: Keras' default; torch's is 0.01
LAYERS = ((32, 1), (32, 2), (64, 1), (64, 2))  # filters and stride of each convolution
MIN_SIDE = 4  # pixels; two convolutions of stride 2 halve it twice


class Reference(nn.Module):
    """The lecture's CNN: four convolutions and a dense layer, each followed by batch norm and LeakyReLU, then dropout.

    For images of 32x32x3 and 10 classes it has 592,554 values. 591,914 of them are learned; the others are moving means
    and variances (the lecture mentions the moving standard deviation; every framework keeps the variance).
    Source: Foster, Generative Deep Learning, 2nd ed., example 2-16.

    Args:
        channels: 3 (RGB) or 1 (grey).
        height: The height of the images in pixels, at least 4.
        width: Their width in pixels, at least 4.
        classes: The number of labels.
        factor: The factor of the number of filters and units in each layer except the last.
        dropout: The share of the dense layer's units that are set to 0 in training, in [0, 1).

    Raises:
        NetworkError: The images are too small.
    """

    def __init__(
        self, channels: int, height: int, width: int, classes: int, factor: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if min(height, width) < MIN_SIDE:
            raise NetworkError(
                f"images of {height}x{width} are too small for the reference network, whose convolutions halve them "
                f"twice: at least {MIN_SIDE}x{MIN_SIDE} is needed"
            )
        layers: list[nn.Module] = []
        for filters, stride in ((round(count * factor), stride) for count, stride in LAYERS):
            convolution = SameConv2d(channels, filters, kernel_size=3, stride=stride)
            layers += [
                convolution,
                nn.BatchNorm2d(filters, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM),
                nn.LeakyReLU(NEGATIVE_SLOPE),
            ]
            channels, height, width = filters, -(-height // stride), -(-width // stride)
        units = round(128 * factor)
        self.features = nn.Sequential(*layers)  # (N, C, H, W) -> (N, 64, H/4, W/4)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, units),
            nn.BatchNorm1d(units, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Dropout(dropout),
            nn.Linear(units, classes),
        )
        self.apply(initialise_like_keras)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits, float32 (N, K), from images, float32 (N, C, H, W) in [-1, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def initialise_like_keras(module: nn.Module) -> None:
    """Initialise a layer with Glorot uniform weights and zero biases; torch's defaults differ in both."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def _build(name: str, shape: tuple[int, int, int], classes: int, factor: float, dropout: float) -> Reference:
    height, width, channels = shape
    return Reference(channels, height, width, classes, factor, dropout)


def _keep_defaults(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Use the default recipe, which is the lecture's, for any data set."""
    return recipe


REFERENCE = Architecture(Reference, _build, _keep_defaults)
