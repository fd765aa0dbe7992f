"""Observe the inputs of batch norm layers: internal covariate shift, and the lag of the moving statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from evalmode.images.pixels import Pixels
from training.datasets import Split
from training.hooks import watch_inputs
from training.networks import PretrainedNetwork, scale_pixels
from training.statistics import list_norms
from training.untouched import untouched

OBSERVED_IMAGES = 256
OBSERVED_PIXELS = 2**18  # of all images together: 256 of 32x32 or 16 of 128x128, which take about the same time
QUANTILE_VALUES = 2**20  # enough for three quantiles; sorting more values takes seconds


@dataclass(frozen=True)
class LayerStatistics:
    """The input of one batch norm layer over one batch, and the moving statistics of the layer.

    Attributes:
        layer: Name of the layer in the network.
        channels: Number of channels.
        batch_mean: Mean over channels of the means of the batch.
        batch_std: Mean over channels of the standard deviations of the batch.
        moving_mean: Mean over channels of the moving means.
        moving_std: Mean over channels of the square roots of the moving variances.
        low: 10% quantile of all values.
        median: Median of all values.
        high: 90% quantile of all values.
        mean_gap: Root mean square over channels of (batch mean - moving mean) / moving standard deviation.
        std_gap: Root mean square over channels of log(batch standard deviation / moving standard deviation).
    """

    layer: str
    channels: int
    batch_mean: float
    batch_std: float
    moving_mean: float
    moving_std: float
    low: float
    median: float
    high: float
    mean_gap: float
    std_gap: float


def sample_images(split: Split) -> Pixels:
    """Choose evenly spaced images to observe, uint8 (N, H, W, C); folders are sorted by label. No random draw."""
    height, width = split.images.shape[1:3]
    count = min(len(split), OBSERVED_IMAGES, max(2, OBSERVED_PIXELS // (height * width)))
    images: Pixels = split.images[np.linspace(0, len(split) - 1, count).astype(int)]
    return images


def observe_layers(network: nn.Module, images_nhwc: Pixels) -> list[LayerStatistics]:
    """Run images through a network in train mode and measure the input of every batch norm layer.

    Layers without moving statistics are skipped. The network and torch's random state stay the same, bit for bit.

    Args:
        network: The network, on any device and in any mode.
        images_nhwc: At least two images, uint8 (N, H, W, C).

    Returns:
        One entry for each layer, in the order of the forward pass.
    """
    observed: dict[str, LayerStatistics] = {}
    layers = {} if isinstance(network, PretrainedNetwork) else list_norms(network)  # a backbone keeps its statistics
    if not layers:
        return []
    device = next(network.parameters()).device

    def observe(name: str, layer: nn.Module, x: Tensor) -> None:
        assert isinstance(layer, BatchNorm)
        observed[name] = _measure_layer(name, layer, x)

    with watch_inputs(layers, observe), untouched(network), torch.no_grad():
        torch.manual_seed(0)  # dropout before a batch norm drops the same values each time
        network.train()
        network(scale_pixels(torch.from_numpy(images_nhwc).to(device)))
    return list(observed.values())


def _measure_layer(name: str, layer: BatchNorm, x: Tensor) -> LayerStatistics:
    moving_mean, moving_variance = layer.running_mean, layer.running_var
    assert moving_mean is not None
    assert moving_variance is not None
    # The unbiased variance, which torch averages; with eps, as in the layer, so that a channel of zeros has no gap.
    variance, mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1])
    std, moving_std = (variance + layer.eps).sqrt(), (moving_variance + layer.eps).sqrt()
    values = x.flatten()[:: (x.numel() // QUANTILE_VALUES) | 1]  # an odd step visits every column and channel
    low, median, high = np.quantile(values.cpu().numpy(), (0.1, 0.5, 0.9)).tolist()
    return LayerStatistics(
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
