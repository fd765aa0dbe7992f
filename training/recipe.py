"""Recipes: how to train each network, adapted to the data. The user can override every value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from training.datasets import Dataset
from training.errors import NetworkError
from training.networks import NETWORKS, get_architecture


@dataclass(frozen=True)
class Recipe:
    """Every choice that decides the weights of a training.

    Attributes:
        network: A name in ``training.networks.NETWORKS``, or ``package.module:function``.
        width: Factor of the number of filters.
        epochs: Passes over the training images, at least 1.
        batch_size: Images in a training step, at least 2.
        optimizer: Adam with a constant learning rate, or AdamW or Muon with one that rises to a peak and falls to 0.
        learning_rate: Learning rate of Adam, or peak learning rate of AdamW or Muon.
        weight_decay: Decoupled weight decay; each step subtracts this share of a weight, times the learning rate.
        label_smoothing: Share of the target probability that is spread over all labels.
        dropout: Share of units dropped in training.
        mirror: Whether to mirror half of the images in each epoch, and the other half in the next one.
        shift: Largest shift of an image in pixels.
        balance: Whether to weight the loss so that every label counts the same.
        fine_tune: Number of the last stages of a pretrained backbone to train; 0 trains only the head.
        views: Number of views of each training image that a pretrained backbone gets: the image, its mirror image, and
            random crops. Other networks draw new ones in each epoch, by ``mirror`` and ``shift``.
        seed: Seed of initial weights, order of images, augmentation, dropout and carved splits.
    """

    network: str = "reference"
    width: float = 1.0
    epochs: int = 10
    batch_size: int = 32
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    dropout: float = 0.5
    mirror: bool = False
    shift: int = 0
    balance: bool = False
    fine_tune: int = 0
    views: int = 1
    seed: int = 0


def choose_recipe(network: str, dataset: Dataset, **overrides: Any) -> Recipe:
    """Choose the recipe of a network for a data set.

    Args:
        network: A name in ``training.networks.NETWORKS``, or package.module:function.
        dataset: The data set that the recipe is fitted to.
        **overrides: Fields of ``Recipe`` that the user chose; None keeps the recipe's value.

    Returns:
        The recipe.

    Raises:
        NetworkError: There is no such network, or the user chose the width or dropout of one that has its own.
    """
    chosen = {name: value for name, value in overrides.items() if value is not None}
    architecture = get_architecture(network)
    given = {name for name in ("width", "dropout") if chosen.get(name, 1.0) != 1.0}
    for name in sorted(given - architecture.options):
        users = [one for one, other in NETWORKS.items() if name in other.options]
        raise NetworkError(f"--{name} is for {', '.join(users)}: {network} decides its own {name}")
    return replace(architecture.fit_recipe(Recipe(network), dataset), **chosen)
