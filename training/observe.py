"""What batch norm sees in each layer: the lecture's internal covariate shift, and how far moving averages lag."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from evalmode.images.pixels import Pixels
from training.datasets import Split
from training.networks import scale_pixels
from training.statistics import list_norms
from training.untouched import untouched

OBSERVED_IMAGES = 256
OBSERVED_PIXELS = 2**18  # of all images together: 256 of 32x32 or 16 of 128x128, so that both cost about the same
QUANTILE_VALUES = 2**20  # as many fix three quantiles well enough, and sorting more takes seconds


@dataclass(frozen=True)
class LayerStatistics:
    """The input of one batch norm layer over one batch, beside the moving statistics that the layer keeps."""

    layer: str  # its name in the network
    channels: int
    batch_mean: float  # mean over channels of the batch's means
    batch_std: float  # mean over channels of the batch's standard deviations
    moving_mean: float  # mean over channels of the moving means
    moving_std: float  # mean over channels of the roots of the moving variances
    low: float  # 10% of all values lie below
    median: float
    high: float  # 90% of all values lie below
    mean_gap: float  # RMS over channels of (batch mean - moving mean) / moving standard deviation
    std_gap: float  # RMS over channels of log(batch / moving standard deviation)


def sample_images(split: Split) -> Pixels:
    """The images to observe, the same ones each time: spread evenly, as folders come sorted by label."""
    height, width = split.images.shape[1:3]
    count = min(len(split), OBSERVED_IMAGES, max(2, OBSERVED_PIXELS // (height * width)))
    images: Pixels = split.images[np.linspace(0, len(split) - 1, count).astype(int)]
    return images


def observe_layers(network: nn.Module, images_nhwc: Pixels) -> list[LayerStatistics]:
    """Pass images through in train mode and look at the input of every batch norm that keeps moving statistics.

    The network stays as it is, bit for bit, and so do torch's random numbers.

    Args:
        network: on any device, in any mode.
        images_nhwc: uint8 (N, H, W, C), at least two.

    Returns:
        One for each layer, in the order of the forward pass.
    """
    observed: dict[str, LayerStatistics] = {}
    layers = list_norms(network)
    if not layers:
        return []
    device = next(network.parameters()).device
    hooks = [
        layer.register_forward_pre_hook(partial(_observe, observed, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with untouched(network), torch.no_grad():
            torch.manual_seed(0)  # dropout above a batch norm draws the same each time
            network.train()
            network(scale_pixels(torch.from_numpy(images_nhwc).to(device)))
    finally:
        for hook in hooks:
            hook.remove()
    return list(observed.values())


def _observe(
    observed: dict[str, LayerStatistics],
    name: str,
    layer: BatchNorm,
    inputs: tuple[Tensor, ...],
    named: dict[str, Tensor],
) -> None:
    x = inputs[0] if inputs else next(iter(named.values()))
    moving_mean, moving_variance = layer.running_mean, layer.running_var
    assert moving_mean is not None
    assert moving_variance is not None
    # The variance is unbiased, as torch averages it; eps as in the layer, so that a channel of zeros has no gap.
    variance, mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1])
    std, moving_std = (variance + layer.eps).sqrt(), (moving_variance + layer.eps).sqrt()
    values = x.flatten()[:: (x.numel() // QUANTILE_VALUES) | 1]  # an odd step visits every column and channel
    low, median, high = np.quantile(values.cpu().numpy(), (0.1, 0.5, 0.9)).tolist()
    observed[name] = LayerStatistics(
        layer=name,
        channels=len(mean),
        batch_mean=mean.mean().item(),
        batch_std=variance.sqrt().mean().item(),
        moving_mean=moving_mean.mean().item(),
        moving_std=moving_variance.sqrt().mean().item(),
        low=low,
        median=median,
        high=high,
        mean_gap=((mean - moving_mean) / moving_std).square().mean().sqrt().item(),
        std_gap=(std / moving_std).log().square().mean().sqrt().item(),
    )
