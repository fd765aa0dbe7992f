"""Recipes: how to train each network, adapted to the data. The user can override every value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from training.datasets import Dataset
from training.errors import NetworkError
from training.networks import NETWORKS

CHARACTERS = ("digits", "mnist")  # data sets in which a mirrored image shows another character or none
MIN_STEPS = 40  # in an epoch: a small data set is cut into smaller batches


@dataclass(frozen=True)
class Recipe:
    """Every choice that decides the weights of a training.

    Attributes:
        network: a name in ``training.networks.NETWORKS``, or ``package.module:function``.
        width: factor of the number of filters.
        epochs: passes over the training images, at least 1.
        batch_size: images in a training step, at least 2.
        optimizer: Adam with a constant learning rate, or Muon with one that rises to a peak and falls to 0.
        learning_rate: learning rate of Adam, or peak learning rate of Muon.
        weight_decay: decoupled weight decay; each step subtracts this share of a weight, times the learning rate.
        label_smoothing: share of the target probability that is spread over all labels.
        dropout: share of units dropped in training.
        mirror: whether to mirror half of the images in each epoch, and the other half in the next one.
        shift: largest shift of an image in pixels.
        balance: whether to weight the loss so that every label counts the same.
        seed: seed of initial weights, order of images, augmentation, dropout and carved splits.
    """

    network: str = "reference"
    width: float = 1.0
    epochs: int = 10
    batch_size: int = 32
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    dropout: float = 0.5
    mirror: bool = False
    shift: int = 0
    balance: bool = False
    seed: int = 0


def choose_recipe(network: str, dataset: Dataset, **overrides: Any) -> Recipe:
    """Choose the recipe of a network for a data set.

    A network of the user gets the recipe of ``reference``, which is the safer one.

    Args:
        network: a name in ``training.networks.NETWORKS``, or ``package.module:function``.
        dataset: decides batch size, mirroring and shift in the recipe of ``compact``.
        **overrides: fields of ``Recipe`` that replace its values; None keeps the value of the recipe.

    Returns:
        The recipe.

    Raises:
        NetworkError: width or dropout is given for a network of the user.
    """
    decided = {name: value for name, value in overrides.items() if value is not None}
    if network == "compact":
        return replace(_fit_compact(dataset), **decided)
    if network in NETWORKS:
        return replace(Recipe(network), **decided)
    if decided.get("width", 1.0) != 1.0 or "dropout" in decided:
        raise NetworkError(f"--width and --dropout are for {' and '.join(NETWORKS)}: {network} decides its own")
    return replace(Recipe(network, dropout=0.0), **decided)


def _fit_compact(dataset: Dataset) -> Recipe:
    """Adapt the recipe of ``compact``: more steps for small data sets, shifts by image size, no mirrored characters."""
    batch_size = min(512, max(32, len(dataset.train) // MIN_STEPS))
    side = min(dataset.contract.height, dataset.contract.width)
    return Recipe(
        network="compact",
        epochs=11,
        batch_size=batch_size,
        optimizer="muon",
        learning_rate=0.1,
        label_smoothing=0.1,
        dropout=0.0,
        mirror=dataset.source not in CHARACTERS,
        shift=side // 14,
    )
