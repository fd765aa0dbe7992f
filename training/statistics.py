"""Batch norm's statistics as the training images really have them, in place of moving averages, which lag.

A layer's statistics depend on what the layers above it give, and those give something else in eval mode than in train
mode. So the layers are taken one after another, each with those above it already in their final form. Then every layer
normalises by the moments of what it will see when it serves.

Only layers that training moved are recomputed: the statistics of a backbone that was kept in eval mode belong to its
weights, whatever the training images are.
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
from training.networks import scale_pixels
from training.ranks import ALONE, Ranks
from training.run import MEAN, VARIANCE

MAX_IMAGES = 8_192  # a mean over as many is off by about a hundredth of a standard deviation
# Images to choose an epoch by: a forward pass over an eighth of the training images is a twenty-fourth of an epoch.
SAMPLED_SHARE, MIN_SAMPLED, MAX_SAMPLED = 1 / 8, 32, 1_024


@dataclass(frozen=True)
class Correction:
    """How far a layer's moving averages were from the statistics of the training images.

    Attributes:
        layer: its name in the network.
        mean: difference of the means in standard deviations, root mean square over channels.
        std: difference of the logarithms of the standard deviations, likewise.
    """

    layer: str
    mean: float
    std: float


def choose_images(split: Split, most: int = MAX_IMAGES) -> Pixels:
    """The training images that statistics are computed from, taken evenly, uint8 (N, H, W, C)."""
    return split.images[:: -(-len(split) // most)]


def list_norms(network: nn.Module) -> dict[str, BatchNorm]:
    """The batch norms that keep a moving mean and a moving variance, by name; each once."""
    layers = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, BatchNorm))
    return {n: layer for n, layer in layers if layer.running_mean is not None and layer.running_var is not None}


def list_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The names of the layers whose moving statistics training changed.

    Args:
        before: a network's state, or the statistics in it, before the first step.
        after: likewise, later.
    """
    changed = [
        name.rpartition(".")[0]
        for name in before  # some layers keep the mean alone
        if name.endswith((MEAN, VARIANCE)) and not torch.equal(before[name].cpu(), after[name].cpu())
    ]
    return list(dict.fromkeys(changed))


class _Seen(Exception):
    """A layer was reached; what comes after it does not matter."""


@torch.no_grad()
def recompute_statistics(
    network: nn.Module, split: Split, ranks: Ranks = ALONE, moved: Collection[str] | None = None
) -> list[Correction]:
    """Replace the moving mean and variance of batch norms by those over all images, in place; ends in eval mode.

    A layer that the network calls more than once, or whose statistics are another layer's, too, keeps what it has:
    there is no one input whose moments they could be.

    Args:
        network: on any device.
        split: the training images, as they are: not augmented. Of more than ``MAX_IMAGES`` some are taken, evenly.
        ranks: the processes that share the images; all end with the same bits.
        moved: the names of the layers to recompute; all unless given.

    Returns:
        How far off each layer was, in the order in which they are called.
    """
    network.eval()
    corrections = []
    device = next(network.parameters()).device
    for name, layer in choose_layers(network, split, moved).items():
        sums = torch.zeros(3, layer.num_features, dtype=torch.float64, device=device)
        for seen in _watch(network, layer, choose_images(split)[ranks.share], device):
            sums += _sum_moments(seen)
        mean, variance = _find_moments(ranks.sum(sums))
        assert layer.running_mean is not None  # as list_norms chose it
        assert layer.running_var is not None
        std = variance.add(layer.eps).sqrt()
        off_mean = (layer.running_mean - mean) / std
        off_std = (layer.running_var.double() + layer.eps).sqrt().log() - std.log()
        corrections.append(Correction(name, *(off.square().mean().sqrt().item() for off in (off_mean, off_std))))
        _put(layer, mean, variance)
    return corrections


@contextmanager
def sample_statistics(
    network: nn.Module, split: Split, moved: Collection[str], batch_size: int, ranks: Ranks = ALONE
) -> Iterator[None]:
    """Inside, batch norms normalise nearly as they will when they are exported; afterwards as before, bit for bit.

    One pass over at most ``MAX_SAMPLED`` images, in which each layer normalises by the moments of its batch:
    ``recompute_statistics`` takes a pass for each layer. Large images come in batches of a training step: a batch of
    one has no variance of its own, and a forward pass holds less than the step did, which kept every activation.

    Args:
        network: on any device; put into eval mode.
        split: the training images.
        moved: the names of the layers that training moves.
        batch_size: images of a training step, of all processes together.
        ranks: the processes that share the images.
    """
    network.eval()
    layers = choose_layers(network, split, moved)
    kept = {name: (layer.running_mean, layer.running_var) for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.running_mean, layer.running_var = map(_copy, (layer.running_mean, layer.running_var))
        if layers:
            count = min(MAX_SAMPLED, max(MIN_SAMPLED, round(SAMPLED_SHARE * len(split))))
            _normalise_by_batches(network, list(layers.values()), choose_images(split, count), batch_size, ranks)
        yield
    finally:
        for name, (mean, variance) in kept.items():
            layers[name].running_mean, layers[name].running_var = mean, variance


def choose_layers(network: nn.Module, split: Split, moved: Collection[str] | None = None) -> dict[str, BatchNorm]:
    """The batch norms whose statistics can be computed, by name, in the order in which they are called.

    Args:
        network: in eval mode.
        split: two of its images are shown to the network.
        moved: the names of the layers to choose from; all unless given.
    """
    norms = list_norms(network)
    if not (norms if moved is None else norms.keys() & set(moved)):
        return {}
    calls: Counter[BatchNorm] = Counter()
    hooks = [layer.register_forward_pre_hook(lambda layer, _: calls.update([layer])) for layer in norms.values()]
    device = next(network.parameters()).device
    try:
        with torch.no_grad():
            network(scale_pixels(torch.from_numpy(split.images[:2])).to(device))
    finally:
        for hook in hooks:
            hook.remove()
    owners = Counter(place for layer in norms.values() for place in _places(layer))
    names = {layer: name for name, layer in norms.items()}
    return {
        names[layer]: layer
        for layer, count in calls.items()
        if count == 1
        and (moved is None or names[layer] in moved)
        and all(owners[place] == 1 for place in _places(layer))
    }


def _places(layer: BatchNorm) -> list[int]:
    """Where a layer's statistics lie in memory."""
    return [tensor.data_ptr() for tensor in (layer.running_mean, layer.running_var) if tensor is not None]


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _sum_moments(seen: Tensor) -> Tensor:
    """For each channel of what a layer sees: the number of values, their sum, that of their squares; float64 (3, C)."""
    variance, mean = torch.var_mean(seen, [a for a in range(seen.ndim) if a != 1], correction=0)
    values = seen.numel() // len(mean)
    mean = mean.double()
    return values * torch.stack([torch.ones_like(mean), mean, variance.double() + mean.square()])


def _find_moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of such sums, float64 (C,) each."""
    count, total, squares = sums
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0)


def _put(layer: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)


@torch.no_grad()
def _normalise_by_batches(
    network: nn.Module, layers: list[BatchNorm], images_nhwc: Pixels, batch_size: int, ranks: Ranks
) -> None:
    """Give layers the moments of what each sees while those above it normalise by the moments of the batch."""
    device = next(network.parameters()).device
    sums = {layer: torch.zeros(3, layer.num_features, dtype=torch.float64, device=device) for layer in layers}

    def normalise(layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        assert isinstance(layer, BatchNorm)
        moments = _sum_moments(_find_input(inputs, named))
        sums[layer] += moments
        _put(layer, *_find_moments(moments))

    hooks = [layer.register_forward_pre_hook(normalise, with_kwargs=True) for layer in layers]
    own = images_nhwc[ranks.share]
    size = max(count_batch(own), batch_size // ranks.count)
    try:
        for images in np.array_split(own, -(-len(own) // size)):  # even: a batch of one has no variance
            network(scale_pixels(torch.from_numpy(images).to(device)))
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        _put(layer, *_find_moments(ranks.sum(sums[layer])))


def _find_input(inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> Tensor:
    """What a layer was called with, by place or by name."""
    return inputs[0] if inputs else next(iter(named.values()))


def _watch(network: nn.Module, layer: BatchNorm, images_nhwc: Pixels, device: torch.device) -> Iterator[Tensor]:
    """What a layer is given, batch by batch; the network runs no further than to it."""
    given: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        given.append(_find_input(inputs, named))
        raise _Seen

    hook = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for images in split_evaluation(images_nhwc):
            try:
                network(scale_pixels(torch.from_numpy(images).to(device)))
            except _Seen:
                yield given.pop()
    finally:
        hook.remove()
