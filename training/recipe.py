"""How to train: a recipe a network, fitted to the data, every number of which the user can override."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from training.datasets import DATASETS, Dataset
from training.errors import NetworkError
from training.networks import NETWORKS

STEPS_AN_EPOCH = 40  # at least: a small data set is cut into smaller batches


@dataclass(frozen=True)
class Recipe:
    """Every choice that a training depends on.

    Attributes:
        network: a name in ``training.networks.NETWORKS``, or package.module:function.
        width: factor of the number of filters.
        epochs: passes over the training images.
        batch_size: images a step.
        optimizer: Adam with a constant learning rate, or Muon with one that rises to a peak and falls to 0.
        learning_rate: Adam's; Muon's at its peak.
        weight_decay: share of each weight, times the learning rate, taken off it at every step.
        label_smoothing: share of the target probability spread over all labels.
        dropout: share of units dropped in training.
        mirror: mirror half of the images, the other half in the next epoch.
        shift: the largest offset of an image in pixels.
        balance: weight the loss so that every label counts the same.
        seed: decides initial weights, order of images, their augmentation, dropout and carved splits.
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
    """The recipe of a network for a data set, with what the user decides put in its place.

    A network that the user brings gets the lecture's, which is the safer of the two.

    Args:
        network: a name in ``training.networks.NETWORKS``, or package.module:function.
        dataset: decides batch size, mirroring and shift of ``compact``'s recipe.
        overrides: fields of ``Recipe``; those that are None are not decided.

    Raises:
        NetworkError: width or dropout of a network that is not ours.
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
    """Steps enough for a small data set; shifts in proportion to the images; no mirrored characters."""
    batch_size = min(512, max(32, len(dataset.train) // STEPS_AN_EPOCH))
    side = min(dataset.contract.height, dataset.contract.width)
    named = DATASETS.get(dataset.source)
    return Recipe(
        network="compact",
        epochs=11,
        batch_size=batch_size,
        optimizer="muon",
        learning_rate=0.1,
        label_smoothing=0.1,
        dropout=0.0,
        mirror=not (named and named.has_characters),
        shift=side // 14,
    )
