"""How images and weights are laid out for a network.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def scale_pixels(pixels_nhwc: Tensor) -> Tensor:
    """Convert pixels to the input of a network.

    Args:
        pixels_nhwc: uint8 (N, H, W, C), in 0..255.

    Returns:
        float32 (N, C, H, W), in [-1, 1].
    """
    return pixels_nhwc.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0


def make_inputs(values: Tensor) -> Tensor:
    """Convert pixels, or the output of a stage of a backbone, to the input of a network.

    Args:
        values: Pixels, uint8 (N, H, W, C) in 0..255, or the output of a stage, floating point (N, ...).

    Returns:
        float32, (N, C, H, W) in [-1, 1] for pixels.
    """
    if not values.is_floating_point():
        return scale_pixels(values)
    layout = torch.channels_last if values.ndim == 4 else torch.contiguous_format  # that of the weights: see lay_out
    return values.to(torch.float32).contiguous(memory_format=layout)


def lay_out(network: nn.Module) -> None:
    """Convert the weights of convolutions to the channels-last memory format, in place.

    Networks train fastest in it: docs/performance.md.

    Args:
        network: The network, on any device.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:  # the format exists for four dimensions only
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
