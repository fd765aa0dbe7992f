"""What a network in eval mode answers to the images of a split, and how good that is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalmode.images.pixels import Pixels
from training.datasets import Split
from training.networks import scale_pixels
from training.ranks import ALONE, Ranks

EVALUATION_PIXELS = 2**19  # of a batch: 512 images of 32x32; more would cost gigabytes where images are large


def predict_logits(network: nn.Module, split: Split) -> Tensor:
    """Logits of every image in eval mode, float32 (N, K) on the CPU."""
    network.eval()
    with torch.no_grad():  # not inference_mode: a tensor that the network keeps for later could not be trained with
        return torch.cat([network(images).cpu() for images in scale_batches(network, split)])


def scale_batches(network: nn.Module, split: Split) -> Iterator[Tensor]:
    """All images as a network takes them, where it is, in batches to evaluate."""
    device = next(network.parameters()).device
    return (scale_pixels(torch.from_numpy(images).to(device)) for images in split_evaluation(split.images))


def split_evaluation(images: Pixels) -> list[Pixels]:
    """Cut images into batches that bound the memory of their feature maps."""
    size = count_batch(images)
    return [images[start : start + size] for start in range(0, len(images), size)]


def count_batch(images: Pixels) -> int:
    """How many images such a batch holds: of large ones only one."""
    return max(1, EVALUATION_PIXELS // images[0, ..., 0].size)


def evaluate(network: nn.Module, split: Split, ranks: Ranks = ALONE) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a split in eval mode, each process asking about its share."""
    own = ranks.take_share(split)
    logits, targets = predict_logits(network, own), torch.from_numpy(own.targets)
    loss = functional.cross_entropy(logits, targets).double() * len(own)
    right, loss_sum = ranks.sum(torch.stack([(logits.argmax(1) == targets).sum(), loss])).tolist()
    return right / len(split), loss_sum / len(split)
