"""Networks that the user provides as a function: imported, called, and checked.

Shapes: N images, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from torch import nn

from evalmode.errors import UsageError
from evalmode.options import make_config
from training.errors import NetworkError
from training.networks.architecture import Architecture
from training.networks.backbone import Backbone, check_backbone, fit_transfer_recipe
from training.networks.failures import explain

if TYPE_CHECKING:
    from training.datasets import Dataset
    from training.networks.pretrained import PretrainedNetwork
    from training.recipe import Recipe


def _fit_recipe(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Use the recipe of pretrained networks for a backbone, and the lecture's for another network; then its own values.

    A network has its own dropout or none; the head of a backbone has dropout.
    """
    name, shape = recipe.network, dataset.contract.shape
    built = _call(name, shape, len(dataset.labels))
    recipe = fit_transfer_recipe(recipe, dataset) if isinstance(built, Backbone) else replace(recipe, dropout=0.0)
    return replace(recipe, **_list_recipe(name, recipe, getattr(built, "recipe", {})))


def _build(name: str, shape: tuple[int, int, int], classes: int, factor: float, dropout: float) -> nn.Module:
    """Build a network by calling the user's function, which chooses its own number of filters.

    Raises:
        NetworkError: The function cannot be imported or called, it raises an error, or it returns something other than
            a module with parameters or a backbone.
    """
    built = _call(name, shape, classes)
    if isinstance(built, Backbone):
        return _attach_head(name, built, shape, classes, dropout)
    if not isinstance(built, nn.Module):
        raise NetworkError(f"{name} returned a {type(built).__name__}, not a torch.nn.Module or an evalmode.Backbone")
    if not list(built.parameters()):
        raise NetworkError(f"{name} returned a network without parameters: there is nothing to learn")
    return built


def _load_weights(network: nn.Module, name: str, weights: Path | None) -> str:
    """Load nothing: the function loads the weights of its network.

    Raises:
        NetworkError: The user chose a file.
    """
    if weights is not None:
        raise NetworkError(f"--weights {weights}: load them in the function of --network {name}, which is your own")
    return ""


OWN = Architecture(nn.Module, _build, _fit_recipe, options=frozenset(), load_weights=_load_weights)


def _attach_head(
    name: str, backbone: Backbone, shape: tuple[int, int, int], classes: int, dropout: float
) -> PretrainedNetwork:
    """Build the network of a backbone, and check the backbone by an image of zeros.

    Raises:
        NetworkError: The backbone cannot be used.
    """
    if not backbone.stages:
        raise NetworkError(f"--network {name}: its backbone has no stages")
    if not all(value > 0 for value in backbone.std):
        raise NetworkError(f"--network {name}: std {backbone.std} of its backbone is not above 0")
    try:
        network = backbone.attach_head(classes, dropout).eval()
        check_backbone(name, network, shape)
    except NetworkError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise NetworkError(f"--network {name}: its backbone fails: {explain(error)}") from error
    return network.train()


def _list_recipe(name: str, recipe: Recipe, chosen: object) -> dict[str, Any]:
    """Check the recipe that a network brings.

    Raises:
        NetworkError: It is not a dict, or it has an unknown name or an invalid value.
    """
    from training.options import TrainOptions  # it has the ranges of the values

    if not isinstance(chosen, Mapping):
        raise NetworkError(f"--network {name}: its recipe is a {type(chosen).__name__}, not a dict")
    shared = {one.name for one in fields(recipe)} & {one.name for one in fields(TrainOptions)}
    known = shared - {"network", "width", "fine_tune", "seed"} | {"optimizer"}
    if unknown := [str(one) for one in chosen if one not in known]:
        raise NetworkError(f"--network {name}: its recipe has {unknown[0]!r}; known are {', '.join(sorted(known))}")
    optimizers = get_args(get_type_hints(type(recipe))["optimizer"])
    if chosen.get("optimizer", recipe.optimizer) not in optimizers:
        raise NetworkError(f"--network {name}: optimizer {chosen['optimizer']!r} is not {', '.join(optimizers)}")
    ranged = {one: value for one, value in chosen.items() if one != "optimizer"}
    try:
        make_config(TrainOptions, ranged, "a recipe")
    except UsageError as error:
        raise NetworkError(f"--network {name}: its recipe cannot be used: {error}") from error
    return dict(chosen)


def _call(name: str, shape: tuple[int, int, int], classes: int) -> object:
    height, width, channels = shape
    return _call_function(name, _import_function(name), (channels, height, width, classes))


def _import_function(name: str) -> Callable[..., object]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise NetworkError(f"--network {name} cannot be imported: {explain(error)}") from error
    if not callable(found):
        raise NetworkError(f"--network {name} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _call_function(name: str, function: Callable[..., object], arguments: tuple[int, int, int, int]) -> object:
    with suppress(ValueError, TypeError):  # builtins have no signature
        signature = inspect.signature(function)
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise NetworkError(
                f"--network {name} takes {signature}, but it is called as function(channels, height, width, classes), "
                f"here with {arguments}"
            ) from error
    try:
        return function(*arguments)
    except NetworkError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise NetworkError(f"--network {name} fails when it builds the network: {explain(error)}") from error
