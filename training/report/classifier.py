"""Classifies images for the report: by ONNX Runtime where that is several times as fast as torch.

Shapes: N images, K labels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from training.datasets import Split
from training.evaluation import predict_logits
from training.features import BATCH, open_backbone
from training.networks import PretrainedNetwork

Classify = Callable[[Split], Tensor]  # N images -> logits, float32 (N, K)


def open_classifier(network: nn.Module, shape: tuple[int, int, int]) -> Classify:
    """Prepare a network to classify images.

    Args:
        network: The network, on the CPU; it is put into eval mode.
        shape: (height, width, channels) of the images.

    Returns:
        A function that computes the logits of every image of a split.
    """
    network.eval()
    if not isinstance(network, PretrainedNetwork):
        return partial(predict_logits, network)
    run = open_backbone(network, 0, shape)

    @torch.no_grad()
    def classify(split: Split) -> Tensor:
        parts = [run(split.images[start : start + BATCH])[1] for start in range(0, len(split), BATCH)]
        logits: Tensor = network.head(torch.from_numpy(np.concatenate(parts)))
        return logits

    return classify
