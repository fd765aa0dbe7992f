"""The features of images, and the output of a stage of a backbone.

ONNX Runtime computes them on the CPU, several times as fast as torch: docs/performance.md.

Shapes: N images, V views, H height, W width, C channels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evalmode.artifact.tensors import INPUT, Floats
from evalmode.images.pixels import Pixels
from evalmode.runtime.session import open_cpu_session
from training.datasets import release_pages
from training.datasets.dataset import Indices
from training.networks import PretrainedNetwork, scale_pixels
from training.onnx_export import convert
from training.ranks import ALONE, Ranks

BATCH = 16  # images; larger batches are slower, since their feature maps do not fit into the caches
MAP, FEATURES = "map", "features"

Extractor = Callable[[Pixels], tuple[Floats, npt.NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class Features:
    """Pooled features of the frozen backbone.

    Attributes:
        train: Of the first views of the training images, float32 (V, N, D).
        val: Of the validation images, float32 (N, D).
        test: Of the test images, float32 (N, D).
    """

    train: Floats
    val: Floats
    test: Floats


class _Backbone(nn.Module):
    """The backbone of a network, with the output of one stage as an output of its own.

    Args:
        network: The network.
        stages: The number of stages before that output; 0 for none.
    """

    def __init__(self, network: PretrainedNetwork, stages: int) -> None:
        super().__init__()
        self.network = network
        self._stages = stages

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, H, W, C) -> features, float32 (N, D), and the output of the stage, if there is one."""
        network, stages = self.network, self._stages
        before = network.run_stages(scale_pixels(image), 0, stages) if stages else scale_pixels(image)
        features = network.pool(network.run_stages(before, stages, len(network.stages)))
        return (features, before) if stages else (features,)


def open_backbone(network: PretrainedNetwork, stages: int, shape: tuple[int, int, int]) -> Extractor:
    """Prepare a backbone to compute features of images.

    Args:
        network: The network, on any device. Later changes of its weights may or may not have an effect.
        stages: The number of stages before the output that is returned in addition to the features.
        shape: (height, width, channels) of the images.

    Returns:
        A function that takes images, uint8 (N, H, W, C), and returns features, float32 (N, D), and the output of the
        stage; the images if ``stages`` is 0.
    """
    device = next(network.parameters()).device
    backbone = _Backbone(network, stages).eval()
    if device.type == "cpu":
        names = [FEATURES, MAP] if stages else [FEATURES]
        graph = convert(backbone, torch.zeros((2, *shape), dtype=torch.uint8), names)
        session = open_cpu_session(graph.SerializeToString(), torch.get_num_threads())

        def run(images: Pixels) -> tuple[Floats, npt.NDArray[Any]]:
            features, *before = session.run(names, {INPUT: images})
            return features, before[0] if before else images

        return run

    @torch.no_grad()
    def run_torch(images: Pixels) -> tuple[Floats, npt.NDArray[Any]]:
        features, *before = (output.cpu().numpy() for output in backbone(torch.from_numpy(images).to(device)))
        return features, before[0] if before else images

    return run_torch


def run_shared(
    run: Extractor, load: Callable[[Indices], Pixels], count: int, ranks: Ranks
) -> Iterator[tuple[Indices, Floats, npt.NDArray[Any]]]:
    """Run a backbone on images in batches that processes share; each process gets the outputs for all images.

    Args:
        run: The backbone.
        load: Returns the images of some rows, uint8 (n, H, W, C).
        count: The number of images.
        ranks: The processes.

    Yields:
        The rows of some images, and the two outputs for them.
    """
    size = BATCH * ranks.count
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        own = rows[ranks.share]
        for rank, outputs in enumerate(ranks.gather(run(load(own)) if len(own) else None)):
            if outputs is not None:
                yield rows[rank :: ranks.count], *outputs


def compute_features(network: PretrainedNetwork, splits: Sequence[Pixels], ranks: Ranks = ALONE) -> list[Floats]:
    """Compute the features of images by a network as it is now.

    Args:
        network: The network, on any device.
        splits: Images of one size, uint8 (N, H, W, C) each, N at least 1.
        ranks: The processes that share the images. All of them get all features.

    Returns:
        float32 (N, D) for each of the splits.
    """
    run = open_backbone(network, 0, splits[0].shape[1:])
    found = []
    for images in splits:
        features = np.empty((len(images), network.head.dense.in_features), np.float32)
        for rows, pooled, _ in run_shared(run, images.__getitem__, len(images), ranks):
            features[rows] = pooled
            release_pages(images)
        found.append(features)
    return found
