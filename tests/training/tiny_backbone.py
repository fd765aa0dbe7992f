"""A backbone of three convolutions with random weights, small enough for tests of every stage of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.datasets import Dataset, Split
from training.networks import PretrainedNetwork
from training.networks.backbone import Backbone

NAME = "tests.training.tiny_backbone:build"
SIDE, FILTERS, LABELS = 16, 8, 3


def build(channels: int, height: int, width: int, classes: int) -> Backbone:
    """Build the backbone, with the same weights each time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        stages = [_make_stage(filters, FILTERS) for filters in (channels, FILTERS, FILTERS)]
    return Backbone(stages, FILTERS, recipe={"epochs": 2, "batch_size": 16, "learning_rate": 0.01})


def build_broken(channels: int, height: int, width: int, classes: int) -> Backbone:
    """Build the backbone with a last stage whose gradients are NaN in training alone, when the head is trained."""
    backbone = build(channels, height, width, classes)
    return Backbone(
        [*backbone.stages[:2], nn.Sequential(backbone.stages[2], _Spoiled())], FILTERS, recipe={"epochs": 1}
    )


class _Spoiled(nn.Module):
    """Returns its input; its weight has NaN as gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (self.zero * self.zero + 0).sqrt() * 0  # the derivative of the root is infinite at 0


def make_network() -> PretrainedNetwork:
    """Build the network of the backbone, as it is before its head is trained."""
    return build(3, SIDE, SIDE, LABELS).attach_head(LABELS, 0.2).eval()


def make_dataset() -> Dataset:
    """Draw noise whose colour depends on the label, and hides it in part."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> Split:
        targets = np.arange(count) % LABELS
        images = rng.integers(0, 206, (count, SIDE, SIDE, 3), np.uint8)
        images[np.arange(count), ..., targets] += rng.integers(0, 25, (count, 1, 1), np.uint8)
        return Split(images, targets)

    labels = ("red", "green", "blue")
    return Dataset("noise", labels, draw(48), draw(21), draw(24))


def save_dataset(folder: Path) -> str:
    """Save the data set as a file that the command takes, and return its path."""
    data, path = make_dataset(), folder / "noise.npz"
    arrays = {
        f"{key}_{name}": getattr(getattr(data, name), field)
        for name in ("train", "val", "test")
        for key, field in (("x", "images"), ("y", "targets"))
    }
    np.savez(path, labels=np.array(data.labels), **arrays)
    return str(path)


def _make_stage(channels: int, filters: int) -> nn.Module:
    norm = nn.BatchNorm2d(filters)
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        nn.init.uniform_(tensor, 0.2, 0.8)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(channels, filters, 3, stride=2, padding=1), norm, nn.ReLU())
