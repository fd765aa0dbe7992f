"""Run a network in eval mode on the images of a split, and measure its accuracy and loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from evalmode.images.pixels import Pixels
from training.datasets import Split
from training.networks import make_inputs
from training.ranks import ALONE, Ranks

EVALUATION_PIXELS = 2**19  # in a batch: 512 images of 32x32; larger batches of large images would take gigabytes


def predict_logits(network: nn.Module, split: Split) -> Tensor:
    """Compute the logits of every image of a split in eval mode.

    Args:
        network: The network, on any device; it is left in eval mode.
        split: N images.

    Returns:
        Logits, float32 (N, K), on the CPU.
    """
    network.eval()
    with torch.no_grad():  # not inference_mode: a network could not train with a tensor that it keeps from there
        return torch.cat([network(images).cpu() for images in scale_batches(network, split)])


def scale_batches(network: nn.Module, split: Split) -> Iterator[Tensor]:
    """Iterate over the images of a split in evaluation batches, as a network takes them.

    Args:
        network: Decides the device.
        split: The images, or the output of a stage of a backbone for each.

    Returns:
        Batches, float32, (B, C, H, W) in [-1, 1] for images.
    """
    device = next(network.parameters()).device
    return (make_inputs(torch.from_numpy(images).to(device)) for images in split_evaluation(split.images))


def split_evaluation(images: Pixels) -> list[Pixels]:
    """Cut images into batches small enough for their feature maps to fit into memory.

    Args:
        images: Pixels, or the output of a stage of a backbone, as ``count_batch`` takes them.
    """
    size = count_batch(images)
    return [images[start : start + size] for start in range(0, len(images), size)]


def count_batch(images: npt.NDArray[Any]) -> int:
    """Count the images of an evaluation batch: at least one, however large the images are.

    Args:
        images: Pixels, uint8 (N, H, W, C), or the output of a stage of a backbone, floating point (N, ...). Every value
            of that counts as a pixel, since the stages after it have several times as many.
    """
    is_pixels = not np.issubdtype(images.dtype, np.floating)
    return max(1, EVALUATION_PIXELS // (images[0, ..., 0] if is_pixels else images[0]).size)


def evaluate(network: nn.Module, split: Split, ranks: Ranks = ALONE) -> tuple[float, float]:
    """Measure a network in eval mode on a split.

    Args:
        network: The network, on any device; it is left in eval mode.
        split: The images and their labels.
        ranks: The processes that share the images; each evaluates its own share.

    Returns:
        Accuracy, from 0 to 1, and mean cross-entropy.
    """
    own = ranks.take_share(split)
    logits, targets = predict_logits(network, own), torch.from_numpy(own.targets)
    loss = functional.cross_entropy(logits, targets).double() * len(own)
    right, loss_sum = ranks.sum(torch.stack([(logits.argmax(1) == targets).sum(), loss])).tolist()
    return right / len(split), loss_sum / len(split)
