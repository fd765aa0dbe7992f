"""The record of a network architecture: what training, export and report need to know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import Tensor, nn

from evalmode.images.pixels import Pixels

if TYPE_CHECKING:
    from training.datasets import Dataset
    from training.recipe import Recipe

M = TypeVar("M", bound=nn.Module)


def prepare_nothing(network: nn.Module, images_nhwc: Pixels) -> None:
    """Leave the network as it was initialised.

    Args:
        network: The network.
        images_nhwc: The training images, uint8 (N, H, W, C).
    """


def show_nothing(network: nn.Module) -> dict[str, Tensor]:
    """Return no filters."""
    return {}


@dataclass(frozen=True, eq=False)
class Architecture(Generic[M]):
    """A network architecture.

    Attributes:
        module: The class of its networks.
        build: Builds a network with new weights; the arguments are those of ``training.networks.build_network``.
        fit_recipe: Fits a recipe with default values to a data set.
        prepare: Computes weights that are not learned by gradient descent from the training images,
            uint8 (N, H, W, C).
        list_filters: Returns filters for the report, in addition to those of the first convolution: float32
            (filters, C, H, W), by a caption.
        scalable: Whether the user may choose the factor of the number of filters, and the dropout.
    """

    module: type[M]
    build: Callable[[str, tuple[int, int, int], int, float, float], M]
    fit_recipe: Callable[[Recipe, Dataset], Recipe]
    prepare: Callable[[M, Pixels], None] = prepare_nothing
    list_filters: Callable[[M], dict[str, Tensor]] = show_nothing
    scalable: bool = True
