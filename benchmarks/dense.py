"""The lecture's dense network: what a classifier is worth that does not know which pixels are neighbours.

    evalmode train DATA --out RUN --network benchmarks.dense:build     with the repository's root on PYTHONPATH

646,260 weights at 32x32x3 and 10 classes. Source: Foster, Generative Deep Learning, 2nd ed., example 2-3.
"""

from __future__ import annotations

from torch import nn

from training.networks.reference import initialise_like_keras


def build(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """Pixels - 200 - 150 - classes, ReLU between; Keras' initial weights.

    Returns:
        A network from float32 (N, channels, height, width) to logits (N, classes).
    """
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = channels * height * width
    for units in (200, 150):
        layers += [nn.Linear(inputs, units), nn.ReLU()]
        inputs = units
    return nn.Sequential(*layers, nn.Linear(inputs, classes)).apply(initialise_like_keras)
