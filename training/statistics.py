"""Batch norm statistics computed over the training images, which replace moving averages that lag behind the weights.

The input of a layer depends on the layers before it, and these layers compute other values in eval mode than in train
mode. The layers are therefore recomputed one after another, in the order of the forward pass. In the end every layer
normalises by the moments of the input that it has in eval mode.

Only layers whose statistics training changed are recomputed. The statistics of a backbone that stayed in eval mode
belong to its pretrained weights and are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from evalmode.images.pixels import Pixels
from training.datasets import Split
from training.evaluation import count_batch, split_evaluation
from training.hooks import watch_inputs
from training.networks import scale_pixels
from training.ranks import ALONE, Ranks
from training.run import MEAN, VARIANCE

MAX_IMAGES = 8_192  # the mean of this many values has a standard error of about 0.01 standard deviations
# Images for validation: a forward pass over an eighth of the training images costs about 1/24 of an epoch.
SAMPLED_SHARE, MIN_SAMPLED, MAX_SAMPLED = 1 / 8, 32, 1_024


@dataclass(frozen=True)
class Correction:
    """The difference between the moving averages of a layer and the statistics of the training images.

    Attributes:
        layer: Name of the layer in the network.
        mean: Root mean square over channels of the difference of the means, in standard deviations.
        std: Root mean square over channels of the difference of the logarithms of the standard deviations.
    """

    layer: str
    mean: float
    std: float


def choose_images(split: Split, limit: int = MAX_IMAGES) -> Pixels:
    """Choose evenly spaced training images to compute statistics from.

    Args:
        split: The training images.
        limit: The largest number of images to choose, at least 1.

    Returns:
        Images, uint8 (N, H, W, C).
    """
    return split.images[:: -(-len(split) // limit)]


def list_norms(network: nn.Module) -> dict[str, BatchNorm]:
    """List the batch norm layers that keep a moving mean and a moving variance, by name; shared layers appear once."""
    layers = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, BatchNorm))
    return {n: layer for n, layer in layers if layer.running_mean is not None and layer.running_var is not None}


def list_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """List the layers whose moving statistics training changed.

    Args:
        before: State of the network before the first step, or only its statistics.
        after: A later state.

    Returns:
        Names of layers, in the order of the state.
    """
    changed = [
        name.rpartition(".")[0]
        for name in before  # some layers keep the mean alone
        if name.endswith((MEAN, VARIANCE)) and not torch.equal(before[name].cpu(), after[name].cpu())
    ]
    return list(dict.fromkeys(changed))


class _LayerReached(Exception):
    """The forward pass has reached the layer; the layers after it need not run."""


@torch.no_grad()
def recompute_statistics(
    network: nn.Module, split: Split, ranks: Ranks = ALONE, moved: Collection[str] | None = None
) -> list[Correction]:
    """Replace the moving mean and variance of batch norm layers by those of the training images, in place.

    A layer keeps its statistics if the network calls it more than once, or if it shares them with another layer: they
    do not belong to a single input.

    Args:
        network: The network, on any device; it is left in eval mode.
        split: The training images, not augmented. At most ``MAX_IMAGES`` of them are used, evenly spaced.
        ranks: The processes that share the images. All of them end with the same bits.
        moved: Names of the layers to recompute; by default all.

    Returns:
        One correction for each recomputed layer, in the order of the forward pass.
    """
    network.eval()
    corrections = []
    device = next(network.parameters()).device
    for name, layer in choose_layers(network, split, moved).items():
        sums = torch.zeros(3, layer.num_features, dtype=torch.float64, device=device)
        for x in _iterate_inputs(network, layer, choose_images(split)[ranks.share]):
            sums += _sum_moments(x)
        mean, variance = _find_moments(ranks.sum(sums))
        assert layer.running_mean is not None  # as list_norms chose it
        assert layer.running_var is not None
        std = variance.add(layer.eps).sqrt()
        mean_error = (layer.running_mean - mean) / std
        std_error = (layer.running_var.double() + layer.eps).sqrt().log() - std.log()
        rms = (error.square().mean().sqrt().item() for error in (mean_error, std_error))
        corrections.append(Correction(name, *rms))
        _set_statistics(layer, mean, variance)
    return corrections


@contextmanager
def sample_statistics(
    network: nn.Module, split: Split, moved: Collection[str], batch_size: int, ranks: Ranks = ALONE
) -> Iterator[None]:
    """Normalise by statistics close to those of the export inside the block, and restore the old ones, bit for bit.

    The statistics come from one forward pass over at most ``MAX_SAMPLED`` images, in which each layer normalises by
    the moments of its batch. ``recompute_statistics`` is exact, but runs a forward pass for each layer. Large images
    are run in batches of the size of a training step, because a batch of one image has no variance; the forward pass
    takes less memory than the step, which keeps every activation.

    Args:
        network: The network, on any device; it is put into eval mode.
        split: The training images.
        moved: Names of the layers whose statistics training changes.
        batch_size: Images in a training step, of all processes together.
        ranks: The processes that share the images.
    """
    network.eval()
    layers = choose_layers(network, split, moved)
    kept = {name: (layer.running_mean, layer.running_var) for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.running_mean, layer.running_var = map(_copy, (layer.running_mean, layer.running_var))
        if layers:
            count = min(MAX_SAMPLED, max(MIN_SAMPLED, round(SAMPLED_SHARE * len(split))))
            _normalise_by_batches(network, layers, choose_images(split, count), batch_size, ranks)
        yield
    finally:
        for name, (mean, variance) in kept.items():
            layers[name].running_mean, layers[name].running_var = mean, variance


def choose_layers(network: nn.Module, split: Split, moved: Collection[str] | None = None) -> dict[str, BatchNorm]:
    """Choose the batch norm layers whose statistics can be computed: called once, and not shared.

    Args:
        network: The network, in eval mode.
        split: Two of its images are run through the network.
        moved: Names of the layers to choose from; by default all.

    Returns:
        Layers by name, in the order of the forward pass.
    """
    norms = list_norms(network)
    if not (norms if moved is None else norms.keys() & set(moved)):
        return {}
    calls: Counter[str] = Counter()
    device = next(network.parameters()).device
    with watch_inputs(norms, lambda name, layer, x: calls.update([name])), torch.no_grad():
        network(scale_pixels(torch.from_numpy(split.images[:2])).to(device))
    owners = Counter(address for layer in norms.values() for address in _list_addresses(layer))
    return {
        name: norms[name]
        for name, count in calls.items()
        if count == 1
        and (moved is None or name in moved)
        and all(owners[address] == 1 for address in _list_addresses(norms[name]))
    }


def _list_addresses(layer: BatchNorm) -> list[int]:
    """List the memory addresses of the statistics of a layer."""
    return [tensor.data_ptr() for tensor in (layer.running_mean, layer.running_var) if tensor is not None]


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _sum_moments(x: Tensor) -> Tensor:
    """Compute the number of values, their sum and the sum of their squares for each channel: float64 (3, C)."""
    variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
    values = x.numel() // len(mean)
    mean = mean.double()
    return values * torch.stack([torch.ones_like(mean), mean, variance.double() + mean.square()])


def _find_moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance, float64 (C,) each, from the sums of `_sum_moments`."""
    count, total, squares = sums
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0)


def _set_statistics(layer: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)


@torch.no_grad()
def _normalise_by_batches(
    network: nn.Module, layers: dict[str, BatchNorm], images_nhwc: Pixels, batch_size: int, ranks: Ranks
) -> None:
    """Set the statistics of layers to the moments of their inputs while each layer normalises by those of the batch."""
    device = next(network.parameters()).device
    sums = {
        name: torch.zeros(3, layer.num_features, dtype=torch.float64, device=device) for name, layer in layers.items()
    }

    def normalise(name: str, layer: nn.Module, x: Tensor) -> None:
        assert isinstance(layer, BatchNorm)
        moments = _sum_moments(x)
        sums[name] += moments
        _set_statistics(layer, *_find_moments(moments))

    own = images_nhwc[ranks.share]
    size = max(count_batch(own), batch_size // ranks.count)
    with watch_inputs(layers, normalise):
        for images in np.array_split(own, -(-len(own) // size)):  # equal parts, as a batch of one has no variance
            network(scale_pixels(torch.from_numpy(images).to(device)))
    for name, layer in layers.items():
        _set_statistics(layer, *_find_moments(ranks.sum(sums[name])))


def _iterate_inputs(network: nn.Module, layer: BatchNorm, images_nhwc: Pixels) -> Iterator[Tensor]:
    """Iterate over the inputs of a layer, batch by batch. The network does not run beyond the layer."""
    inputs: list[Tensor] = []
    device = next(network.parameters()).device

    def stop(name: str, layer: nn.Module, x: Tensor) -> None:
        inputs.append(x)
        raise _LayerReached

    with watch_inputs({"": layer}, stop):
        for images in split_evaluation(images_nhwc):
            try:
                network(scale_pixels(torch.from_numpy(images).to(device)))
            except _LayerReached:
                yield inputs.pop()
