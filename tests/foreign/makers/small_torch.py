"""A small network of torch, trained on the photos."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import made
import numpy as np
import torch
from PIL import Image
from torch import nn

SIZE = 64


def read_images(photos: Path) -> torch.Tensor:
    """Read the photos as many users do: squashed by Pillow, then divided by 255, float32 (N, 3, H, W)."""
    pictures = [Image.open(path).convert("RGB").resize((SIZE, SIZE)) for path in made.list_photos(photos)]
    return torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2) / 255


def make_network(images: torch.Tensor, photos: Path) -> nn.Sequential:
    """Train a network of convolutions and batch norms on the photos.

    Args:
        images: float32 (N, 3, H, W).
        photos: The folder that they are from.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    widths = (3, 16, 32, 64)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    network = nn.Sequential(*layers, nn.Linear(widths[-1], len(made.list_labels(photos))))
    targets = torch.from_numpy(made.list_targets(photos))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(12):
        for rows in torch.randperm(len(images)).split(20):
            loss = nn.functional.cross_entropy(network(images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.inference_mode():
        for _ in range(30):
            network(images)  # batch norm collects statistics of the trained weights
    return network.eval()
