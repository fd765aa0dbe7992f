"""Filters, feature maps and images as PNG inside the page. Shapes: C channels, H height, W width."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor, nn

from serving.pixels import Pixels
from training.networks import scale_pixels
from training.report.charts import COLOURS

SHOWN_MAPS = 8  # of a convolution
SHOWN_FILTERS = 64
LARGEST_SIDE = 96  # of a picture in the page, in pixels


def watch_convolutions(network: nn.Module, pixels: Pixels) -> dict[str, Tensor]:
    """Pass one image, uint8 (H, W, C), through in eval mode.

    Returns:
        By the name of each convolution, in the order of the forward pass, its feature maps, float32 (filters, H, W).
    """
    names = {module: name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    maps: dict[str, Tensor] = {}

    def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
        maps[names[layer]] = output[0].float().cpu()  # type: ignore[index]  # hooked below: only convolutions

    hooks = [layer.register_forward_hook(keep) for layer in names]
    device = next(network.parameters()).device
    with torch.inference_mode():
        network.eval()
        network(scale_pixels(torch.from_numpy(pixels[np.newaxis]).to(device)))
    for hook in hooks:
        hook.remove()
    return maps


def embed_image(pixels: Pixels) -> str:
    """Grey, RGB or RGBA pixels, uint8 (H, W, C), as an address that holds the picture itself."""
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def embed_maps(maps: Tensor) -> list[str]:
    """Some feature maps: orange where the image matches the filter, blue where it matches the inverse."""
    some = np.linspace(0, len(maps) - 1, min(SHOWN_MAPS, len(maps))).astype(int)
    values = maps[some].numpy()[..., np.newaxis]
    strength = abs(values) / max(abs(values).max(), 1e-12)  # 0 is transparent: it reads by day and by night
    colours = np.where(values > 0, to_rgb(COLOURS["orange"]), to_rgb(COLOURS["blue"]))
    return [embed_image(one) for one in np.rint(255 * np.concatenate([colours, strength], 3)).astype(np.uint8)]


def embed_filters(weight: Tensor) -> list[str]:
    """Filters of an image, (filters, 1 or 3, H, W), as images: 0 is mid grey."""
    filters = weight[:SHOWN_FILTERS].detach().permute(0, 2, 3, 1).cpu().numpy()
    largest = np.maximum(abs(filters).max((1, 2, 3), keepdims=True), 1e-12)
    return [embed_image(one) for one in np.rint(127.5 + 127.5 * filters / largest).astype(np.uint8)]
