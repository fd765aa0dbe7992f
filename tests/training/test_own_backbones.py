"""Backbones and recipes of a user's function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evalmode
from training.datasets import Dataset, Split
from training.errors import NetworkError
from training.networks import PretrainedNetwork, build_network, get_architecture, recognise_architecture
from training.networks.backbone import AveragePool
from training.networks.own import OWN
from training.recipe import Recipe, choose_recipe
from training.trial import try_network

NAME = "tests.training.own_networks:"
SHAPE = (16, 16, 3)


def build(name: str, shape: tuple[int, int, int] = SHAPE) -> Any:
    return build_network(NAME + name, shape, 4, 1.0, 0.3)


def choose(name: str, **chosen: Any) -> Recipe:
    split = Split(np.zeros((2, *SHAPE), np.uint8), np.arange(2))
    return choose_recipe(NAME + name, Dataset("photos", ("a", "b"), split, split, split), **chosen)


def test_a_backbone_gets_a_head_and_its_scaling() -> None:
    network = build("backbone")
    assert isinstance(network, PretrainedNetwork)
    assert isinstance(network.pool, AveragePool)
    assert (len(network.stages), network.head.norm.num_features, network.head.dropout.p) == (2, 8, 0.3)
    assert network.training
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(network.scale(x), ((x + 1) / 2 - 0.5) / 0.25)
    features = network.stages[1](network.stages[0](network.scale(x))).mean((2, 3))
    torch.testing.assert_close(network.eval()(x), network.head(features))
    assert recognise_architecture(network) is get_architecture(NAME + "backbone") is OWN


def test_a_backbone_may_pool_in_its_own_way() -> None:
    network = build("pooled_backbone")
    assert network.extract(torch.zeros(2, 3, 16, 16)).shape == (2, 32)


def test_a_backbone_can_be_trained_and_exported() -> None:
    warnings: list[str] = []
    try_network(NAME + "backbone", build("backbone"), SHAPE, 4, warnings.append)
    assert warnings == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_features", r"its features of one image are torch.float32 \(1, 8\), not float32 \(1, 9\)"),
        ("wrong_stages", r"its backbone fails: RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("paired_stages", "stage 2 returns a tuple; each stage takes and returns one tensor"),
        ("without_stages", "its backbone has no stages"),
        ("zero_std", r"std \[0\.0\] of its backbone is not above 0"),
    ],
)
def test_a_backbone_that_does_not_fit_together_is_refused(name: str, message: str) -> None:
    with pytest.raises(NetworkError, match=f"^--network {NAME}{name}: {message}") as refused:
        build(name)
    assert "\n" not in str(refused.value)


def test_a_backbone_is_trained_with_the_recipe_of_pretrained_networks_and_its_own_values() -> None:
    recipe, built_in = choose("backbone"), choose_recipe_of_lite()
    assert (recipe.epochs, recipe.dropout) == (3, 0.4)
    assert recipe.optimizer == built_in.optimizer == "adamw"
    assert (recipe.learning_rate, recipe.mirror) == (built_in.learning_rate, built_in.mirror)
    assert choose("backbone", epochs=5).epochs == 5  # an option of the command replaces it


def choose_recipe_of_lite() -> Recipe:
    split = Split(np.zeros((2, *SHAPE), np.uint8), np.arange(2))
    return choose_recipe("efficientnet-lite0", Dataset("photos", ("a", "b"), split, split, split))


def test_a_plain_network_may_have_a_recipe() -> None:
    recipe = choose("with_recipe")
    assert (recipe.learning_rate, recipe.optimizer, recipe.mirror) == (1e-3, "adamw", True)
    assert (recipe.epochs, recipe.batch_size, recipe.dropout) == (10, 32, 0.0)  # of networks without a recipe


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown_recipe", "its recipe has 'lr'; known are balance, batch_size, .*learning_rate, .*optimizer"),
        ("unknown_optimizer", "optimizer 'lion' is not adam, adamw, muon"),
        ("recipe_out_of_range", "its recipe cannot be used: .*epochs"),
        ("recipe_as_text", "its recipe is a str, not a dict"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(name: str, message: str) -> None:
    with pytest.raises(NetworkError, match=f"^--network {NAME}{name}: {message}"):
        choose(name)


def test_a_file_of_weights_is_not_for_a_users_network(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"--weights .*w\.pth: load them in the function of --network"):
        OWN.load_weights(build("backbone"), NAME + "backbone", tmp_path / "w.pth")
    assert OWN.load_weights(build("backbone"), NAME + "backbone", None) == ""


def test_a_backbone_is_a_public_name() -> None:
    assert evalmode.Backbone([torch.nn.Identity()], 3).mean == (0.485, 0.456, 0.406)
