"""The record of a network architecture: what training, export and report need to know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import Tensor, nn

from evalmode.images.pixels import Pixels, Resize
from training.errors import NetworkError

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


@dataclass(frozen=True)
class NetworkInput:
    """The images that a network is made for.

    Attributes:
        size: (height, width) in pixels; None if the network takes images of any size.
        resize: How images of another size are resized and cropped.
    """

    size: tuple[int, int] | None = None
    resize: Resize = field(default_factory=Resize)


def take_any(name: str) -> NetworkInput:
    """Return the input of a network that takes images of any size.

    Args:
        name: The name of the network.
    """
    return NetworkInput()


def load_nothing(network: nn.Module, name: str, weights: Path | None) -> str:
    """Load no pretrained weights.

    Args:
        network: The network.
        name: Its name.
        weights: A file of pretrained weights that the user chose.

    Returns:
        "".

    Raises:
        NetworkError: The user chose a file.
    """
    if weights is not None:
        raise NetworkError(f"--weights {weights}: {name} is trained from scratch; it has no pretrained weights to load")
    return ""


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
        options: The names of the fields of a recipe that not every network uses: the factor of the number of filters,
            ``width``, and ``dropout``.
        describe_input: Returns the images that the network of a name is made for. The pixels keep the range 0..255:
            scaling to another range than [-1, 1] is part of the network.
        load_weights: Loads pretrained weights into a new network: those of its own, or of a file that the user chose.
            Returns the file and its sha256, for ``run.json``; "" if nothing was loaded. Networks with pretrained
            weights are of the class ``PretrainedNetwork``.
    """

    module: type[M]
    build: Callable[[str, tuple[int, int, int], int, float, float], M]
    fit_recipe: Callable[[Recipe, Dataset], Recipe]
    prepare: Callable[[M, Pixels], None] = prepare_nothing
    list_filters: Callable[[M], dict[str, Tensor]] = show_nothing
    options: frozenset[str] = frozenset({"width", "dropout"})
    describe_input: Callable[[str], NetworkInput] = take_any
    load_weights: Callable[[M, str, Path | None], str] = load_nothing
