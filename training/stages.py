"""Which stages of a pretrained network are trained, and from how many views of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.datasets import Dataset
from training.errors import NetworkError
from training.feature_cache import HEAD_VIEWS
from training.networks import PretrainedNetwork
from training.options import AUTO, TrainOptions
from training.recipe import Recipe

NONE = "none"
MAX_MAP_BYTES = 4 * 2**30
TRAINED_SHARE = 0.75  # of the operations, at most: the first stages respond to edges and textures of any photo
TUNING = ("epochs", "batch_size", "learning_rate", "weight_decay", "label_smoothing", "dropout")


def complete_recipe(recipe: Recipe, network: PretrainedNetwork, dataset: Dataset, options: TrainOptions) -> Recipe:
    """Decide which stages of a pretrained network are trained, and the number of views of each training image.

    Args:
        recipe: The recipe of the network.
        network: The network; it is left in eval mode.
        dataset: The data set to train on.
        options: What the user chose.

    Returns:
        The recipe with ``fine_tune`` and ``views``.

    Raises:
        NetworkError: The network has fewer stages than the user chose, or an option would have no effect.
    """
    chosen, sizes = options.fine_tune, measure_stages(network, dataset.contract.shape)
    count = int({AUTO: count_trained_stages(sizes), NONE: 0}.get(chosen, chosen))
    if count > len(sizes):
        raise NetworkError(f"--fine-tune {count}: {recipe.network} has {len(sizes)} stages")
    if options.shift:
        raise NetworkError(f"--shift {options.shift}: {recipe.network} is trained on random crops instead of shifts")
    unused = [name for name in TUNING if getattr(options, name) is not None] if not count else []
    if unused:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise NetworkError(f"{flags} would have no effect: only the head of {recipe.network} is trained")
    views = limit_views(recipe.views, len(dataset.train), count, sizes)
    return replace(recipe, fine_tune=count, views=views, shift=0)


@dataclass(frozen=True)
class StageSize:
    """What one stage of a backbone costs for an image.

    Attributes:
        operations: The floating-point operations.
        input_bytes: The size of its input as it is kept: float16, or uint8 pixels for the first stage.
    """

    operations: int
    input_bytes: int


@torch.no_grad()
def measure_stages(network: PretrainedNetwork, shape: tuple[int, int, int]) -> list[StageSize]:
    """Measure every stage of a backbone.

    Args:
        network: The network; it is left in eval mode.
        shape: (height, width, channels) of the images.
    """
    height, width, channels = shape
    x = torch.zeros((1, channels, height, width), device=next(network.parameters()).device)
    network.eval()
    sizes = []
    for index in range(len(network.stages)):
        kept = x.numel() * (2 if index else 1)
        with FlopCounterMode(display=False) as counter:
            x = network.run_stages(x, index, index + 1)
        sizes.append(StageSize(counter.get_total_flops(), kept))
    return sizes


def count_trained_stages(sizes: Sequence[StageSize]) -> int:
    """Count the last stages that have at most three quarters of the operations of a backbone; 0 if the last has more.

    Args:
        sizes: The sizes of all stages.
    """
    after = np.cumsum([size.operations for size in reversed(sizes)])
    return int((after <= TRAINED_SHARE * after[-1]).sum())


def limit_views(views: int, images: int, fine_tune: int, sizes: Sequence[StageSize]) -> int:
    """Limit the views of each training image, so that the input of the trained stages takes at most 4 GiB on the disk.

    Args:
        views: The wanted number of views.
        images: The number of training images.
        fine_tune: The number of trained stages.
        sizes: The sizes of all stages.

    Returns:
        At most ``views``, and at least 1; without trained stages, at most the views that train the head.
    """
    if not fine_tune:
        return min(views, HEAD_VIEWS)
    return max(1, min(views, MAX_MAP_BYTES // (images * sizes[len(sizes) - fine_tune].input_bytes)))
