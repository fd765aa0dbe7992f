"""Class activation maps: which parts of an image speak for a label.

Source: Zhou et al., Learning Deep Features for Discriminative Localization (1512.04150).

Shapes: N images, H height, W width, C channels, D features, K labels, h and w positions of the feature map.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor, nn

from evalmode.images.pixels import Pixels
from training.evaluation import split_evaluation
from training.networks import PretrainedNetwork, scale_pixels
from training.networks.pretrained import Head
from training.report.charts import COLOURS

Floats = npt.NDArray[np.float32]
OPACITY = 0.75  # of the strongest value in an overlay


@torch.no_grad()
def compute_activation_maps(network: nn.Module, images: Pixels) -> Tensor | None:
    """Compute exact class activation maps.

    The mean of a label's map over its positions, plus a constant of the label, is the logit of the label.

    Args:
        network: The network, on the CPU; it is put into eval mode.
        images: uint8 (N, H, W, C).

    Returns:
        float32 (N, K, h, w); None if the network has no pretrained backbone whose features are means over positions.
    """
    if not isinstance(network, PretrainedNetwork):
        return None
    network.eval()
    batches = (scale_pixels(torch.from_numpy(batch)) for batch in split_evaluation(images))
    features = torch.cat([network.run_stages(batch, 0, len(network.stages)) for batch in batches])
    if features.dim() != 4:
        return None
    pooled, means = network.pool(features), features.mean((2, 3))
    if pooled.shape != means.shape or not torch.allclose(pooled, means, rtol=1e-3, atol=1e-4):
        return None
    return torch.einsum("kd,ndhw->nkhw", _fold_head(network.head), features)


def _fold_head(head: Head) -> Tensor:
    """Return the weights of the dense layer for features before the batch norm layer, (K, D)."""
    norm, dense = head.norm, head.dense
    assert norm.running_var is not None
    weight: Tensor = dense.weight * norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return weight


def compare_labels(maps: Tensor) -> Floats:
    """Subtract the mean map of all labels: what is left speaks for a label rather than for the others.

    The same map added to those of all labels changes no probability.

    Args:
        maps: Class activation maps of one image, float32 (K, h, w).

    Returns:
        float32 (K, h, w).
    """
    compared: Floats = (maps - maps.mean(0)).numpy()
    return compared


def overlay_map(pixels: Pixels, values: Floats, strongest: float) -> Pixels:
    """Colour a grey copy of an image: orange where it speaks for a label, blue where it speaks against it.

    Args:
        pixels: The image, uint8 (H, W, C).
        values: The map of the label, float32 (h, w); 0 leaves the image grey.
        strongest: The absolute value with the full colour, above 0.

    Returns:
        uint8 (H, W, 3).
    """
    height, width = pixels.shape[:2]
    grey = pixels.astype(np.float32).mean(2, keepdims=True)
    large = np.asarray(Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    alpha = OPACITY * np.clip(np.abs(large) / strongest, 0, 1)[..., np.newaxis]
    orange, blue = (255 * np.array(to_rgb(COLOURS[name]), np.float32) for name in ("orange", "blue"))
    colour = np.where(large[..., np.newaxis] > 0, orange, blue)
    coloured: Pixels = np.rint(grey * (1 - alpha) + colour * alpha).astype(np.uint8)
    return coloured
