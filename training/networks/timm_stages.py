"""Splits a model of timm into stages, without knowing its architecture: by running its children.

Shapes: N images, C channels, H height, W width, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.networks.backbone import AveragePool


@dataclass(frozen=True)
class Cut:
    """Where a model is split.

    Attributes:
        children: The names of its first children, which compute the feature maps one after another; () if none do.
        averages: Whether all that follows up to the classifier is global average pooling.
    """

    children: tuple[str, ...]
    averages: bool


class Pool(nn.Module):
    """What timm does after the last feature map, up to the classifier.

    Args:
        model: The model, without the modules before.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Convert the output of the last stage to features, float32 (N, D)."""
        features: Tensor = self.model.forward_head(x, pre_logits=True)  # type: ignore[operator]
        return features


class Whole(nn.Module):
    """A model as one stage.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Convert scaled images, float32 (N, C, H, W), to features, float32 (N, D)."""
        features: Tensor = self.model.forward_head(self.model.forward_features(x), pre_logits=True)  # type: ignore[operator]
        return features


def make_images(size: tuple[int, int]) -> Tensor:
    """Make an image of noise.

    Args:
        size: (height, width) in pixels.

    Returns:
        float32 (1, 3, height, width).
    """
    return torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))


def split(model: nn.Module, cut: Cut) -> tuple[list[nn.Module], nn.Module]:
    """Split a model into stages and pooling; one that cannot be cut becomes one stage, which pools by itself.

    Args:
        model: The model; it loses the modules of the stages.
        cut: Where to split it.

    Returns:
        The stages, and what follows them up to the features.
    """
    if not cut.children:
        return [Whole(model)], nn.Identity()
    stages: list[list[nn.Module]] = []
    for module in _list_modules([model.get_submodule(name) for name in cut.children]):
        if stages and all(tensor.ndim < 2 for tensor in module.parameters()):
            stages[-1].append(module)  # norm, activation or pooling
        else:
            stages.append([module])
    for name in cut.children:
        delattr(model, name)
    return [nn.Sequential(*modules) for modules in stages], AveragePool() if cut.averages else Pool(model)


@torch.no_grad()
def find_cut(model: nn.Module, size: tuple[int, int]) -> Cut:
    """Find the children of a model that compute its feature maps, by running them one after another.

    Every parameter gets another value before, so that an operation shows, such as the addition of positions, that does
    nothing in a new model.

    Args:
        model: The model, in eval mode; it is not changed.
        size: (height, width) of the images to run it on.

    Returns:
        Where to split the model.
    """
    twin, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in twin.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, (len(parameter) / parameter.numel()) ** 0.5, generator=generator)
        else:
            parameter.uniform_(0.2, 0.7, generator=generator)
    images = make_images(size)
    wanted: Tensor = twin.forward_features(images)  # type: ignore[operator]
    children: list[str] = []
    x = images
    for name, child in twin.named_children():
        try:
            for module in _list_modules([child]):
                x = module(x)
        except Exception:  # the children take something else, in an order of their own
            break
        children.append(name)
        if isinstance(x, Tensor) and torch.equal(x, wanted):
            features = twin.forward_head(x, pre_logits=True)  # type: ignore[operator]
            mean = x.mean((2, 3)) if x.ndim == 4 else x
            averages = features.shape == mean.shape and torch.allclose(features, mean, 1e-4, 1e-5)
            return Cut(tuple(children), averages)
    return Cut((), False)


def _list_modules(children: list[nn.Module]) -> Iterator[nn.Module]:
    """List modules; of a sequence of modules its members."""
    for child in children:
        if isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward:
            yield from child
        else:
            yield child
