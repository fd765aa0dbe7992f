"""Compare the activation map of a graph with one that torch computes in another way: by gradients.

Shapes: N images, C channels, H height, W width, D features, K labels, h and w positions of the feature map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT, Floats, largest_value
from evalmode.certification.activation_map import find_feature_map
from evalmode.images.pixels import Pixels
from evalmode.runtime.session import open_cpu_session
from training.agreement import Expected
from training.errors import NetworksDisagree
from training.hooks import watch_outputs
from training.networks import scale_pixels

COMPARED = 4  # images
# The share of the largest value by which a layer may differ from the feature map. It only tells layers apart, whose
# outputs differ by far more: the maps themselves are compared within the tolerance of the logits.
SAME_LAYER = 1e-2


def measure_map_difference(
    network: nn.Module, images: Pixels, expected: Expected, graph: onnx.ModelProto
) -> float | None:
    """Compare the activation maps of some images with those of torch.

    The gradient of a logit with respect to the feature map is the weight of each feature at each position. Features
    times gradients, plus a constant of each label, are therefore the map, however the graph computes it.

    Args:
        network: The network, in eval mode on the CPU.
        images: Test images, uint8 (N, H, W, C); the first of them are compared.
        expected: The logits of torch for all images, and the tolerance.
        graph: A graph with the output ``activation_map``.

    Returns:
        The largest difference; None if no layer of the network computes the feature map, which leaves the map unproven.

    Raises:
        NetworksDisagree: A value differs by more than the tolerance of the logits, in proportion to the largest value
            and to the root of the number of positions.
    """
    images = images[:COMPARED]
    maps, features = _run(graph, images)
    found = _find_layer(network, images, features)
    if found is None:
        return None
    exact = _compute_maps(network, found, images)
    difference = float(np.abs(exact - maps).max())
    share = expected.tolerance / largest_value(expected.logits)
    # The logits are means over the positions, which cancels the rounding of these in part.
    allowed = max(expected.tolerance, share * largest_value(exact)) * float(np.sqrt(exact[0, 0].size))
    if not difference <= allowed:  # written so that NaN is refused, too
        raise NetworksDisagree(
            f"the {ACTIVATION_MAP} of the graph is not that of torch: values differ by {difference:.2e} (limit "
            f"{allowed:.2g}); nothing was published"
        )
    return difference


def _run(graph: onnx.ModelProto, images: Pixels) -> tuple[Floats, Floats]:
    """Run a graph: the activation maps, (N, K, h, w), and the feature maps, (N, D, h, w)."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph)
    features = find_feature_map(graph)
    exposed.graph.output.append(onnx.ValueInfoProto(name=features))
    maps, seen = open_cpu_session(exposed.SerializeToString()).run([ACTIVATION_MAP, features], {INPUT: images})
    return maps, seen


@torch.no_grad()
def _find_layer(network: nn.Module, images: Pixels, features: Floats) -> str | None:
    """Find the last layer whose output is the feature map, up to the rounding of many layers."""
    found = []

    def compare(name: str, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.shape == features.shape:
            difference = float(np.abs(output.numpy() - features).max())
            found.extend([name] if difference <= SAME_LAYER * largest_value(features) else [])

    with watch_outputs(dict(network.named_modules()), compare):
        network(scale_pixels(torch.from_numpy(images)))
    return found[-1] if found else None


def _compute_maps(network: nn.Module, layer: str, images: Pixels) -> Floats:
    """Compute activation maps, (N, K, h, w), from the gradients at a layer."""
    leaves: list[Tensor] = []

    def cut(_layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = network.get_submodule(layer).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = network(scale_pixels(torch.from_numpy(images)))
    finally:
        handle.remove()
    features, maps = leaves[-1], []
    for label in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), features, retain_graph=True)
        products = (gradient.double() * features.detach().double()).sum(1)  # of one label, (N, h, w)
        constant = logits[:, label].detach().double() - products.sum((1, 2))
        maps.append(products * products[0].numel() + constant[:, None, None])
    stacked: Floats = torch.stack(maps, dim=1).float().numpy()
    return stacked
