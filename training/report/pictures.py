"""Filters, feature maps and images as PNG data inside the page. Shapes: C channels, H height, W width."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor, nn

from evalmode.certification.design.rendering import embed
from evalmode.images.pixels import Pixels
from training.datasets import Split
from training.hooks import watch_outputs
from training.networks import scale_pixels
from training.report.charts import COLOURS

SHOWN_MAPS = 8  # per convolution
SHOWN_FILTERS = 64
MAX_SIDE = 96  # pixels of a picture in the page
PHOTO_SIDE = 160  # pixels of a photo, which the page shows smaller than that
PHOTO_QUALITY = 80  # of JPEG


def watch_convolutions(network: nn.Module, pixels: Pixels) -> dict[str, Tensor]:
    """Record the feature maps of one image.

    Args:
        network: The network; it is put into eval mode.
        pixels: The image, uint8 (H, W, C).

    Returns:
        The feature maps of each convolution, float32 (filters, H, W), by its name and in the order of the forward pass.
    """
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    maps: dict[str, Tensor] = {}

    def keep(name: str, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        maps[name] = output[0].float().cpu()

    device = next(network.parameters()).device
    with watch_outputs(convolutions, keep), torch.inference_mode():
        network.eval()
        network(scale_pixels(torch.from_numpy(pixels[np.newaxis]).to(device)))
    return maps


def embed_image(pixels: Pixels) -> str:
    """Encode an image as a data URL, reduced in size if it is large.

    Args:
        pixels: Grey, RGB or RGBA, uint8 (H, W, C).

    Returns:
        The URL, which holds the image as PNG.
    """
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return _encode(image, "PNG", optimize=True)


def embed_photo(pixels: Pixels) -> str:
    """Encode an image of a data set as a data URL: large images as JPEG of at most 160 pixels, small ones as they are.

    Args:
        pixels: Grey or RGB, uint8 (H, W, C).

    Returns:
        The URL.
    """
    if max(pixels.shape[:2]) <= MAX_SIDE:
        return embed_image(pixels)
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    return _encode(image, "JPEG", quality=PHOTO_QUALITY)


def _encode(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return embed(buffer.getvalue(), kind.lower())


def name_image(split: Split, row: int, name: str) -> Path:
    """Return the path of an image, or its number if it has no file.

    Args:
        split: The images.
        row: Index of the image.
        name: Name of the split.
    """
    return split.paths[row] if split.paths else Path(f"{name} image {row}")


def place_image(path: Path, data: str) -> str:
    """Return where an image is: its path in the folder of the data set, or the last two parts of another path.

    Args:
        path: What ``name_image`` returns.
        data: The folder of the data set, as the data set was opened.
    """
    inside = path.relative_to(data) if path.is_relative_to(data) else Path(*path.parts[-2:])
    return inside.as_posix()


def embed_maps(maps: Tensor) -> list[str]:
    """Encode some feature maps: orange for positive values, blue for negative values, transparent for 0.

    Args:
        maps: float32 (filters, H, W), on the CPU.

    Returns:
        A data URL for each map.
    """
    some = np.linspace(0, len(maps) - 1, min(SHOWN_MAPS, len(maps))).astype(int)
    values = maps[some].numpy()[..., np.newaxis]
    strength = abs(values) / max(abs(values).max(), 1e-12)  # 0 is transparent, which suits light and dark mode
    colours = np.where(values > 0, to_rgb(COLOURS["orange"]), to_rgb(COLOURS["blue"]))
    return [embed_image(one) for one in np.rint(255 * np.concatenate([colours, strength], 3)).astype(np.uint8)]


def embed_filters(weight: Tensor) -> list[str]:
    """Encode filters as images; a weight of 0 is mid grey.

    Args:
        weight: float32 (filters, 1 or 3, H, W).

    Returns:
        A data URL for each of the first filters.
    """
    filters = weight[:SHOWN_FILTERS].detach().permute(0, 2, 3, 1).cpu().numpy()
    largest = np.maximum(abs(filters).max((1, 2, 3), keepdims=True), 1e-12)
    return [embed_image(one) for one in np.rint(127.5 + 127.5 * filters / largest).astype(np.uint8)]
