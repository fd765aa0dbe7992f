"""The lecture's dense network: a classifier that does not know which pixels are neighbors.

    evalmode train DATA --out RUN --network benchmarks.quality.dense:build     with the repository's root on PYTHONPATH

646,260 weights for 32x32x3 and 10 classes. Source: Foster, Generative Deep Learning, 2nd ed., example 2-3.
"""

from __future__ import annotations

from torch import nn

from training.networks.reference import initialise_like_keras


def build(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """Build pixels - 200 - 150 - classes with ReLU and the initial weights of Keras.

    Args:
        channels: Number of channels.
        height: Pixels.
        width: Pixels.
        classes: Number of classes.

    Returns:
        A network from float32 (N, channels, height, width) to logits (N, classes).
    """
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = channels * height * width
    for units in (200, 150):
        layers += [nn.Linear(inputs, units), nn.ReLU()]
        inputs = units
    return nn.Sequential(*layers, nn.Linear(inputs, classes)).apply(initialise_like_keras)
