"""A plan for a time limit: views and epochs by a measurement that changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training import plan
from training.datasets import Dataset
from training.networks import build_network
from training.plan import REPORT_S, describe_plan, plan_recipe
from training.recipe import Recipe

from .states import equal, state_of
from .tiny_backbone import make_dataset, make_network

WHOLE = Recipe(network="tiny", fine_tune=1, views=6, epochs=8, batch_size=16)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return make_dataset()


def test_the_whole_recipe_fits_into_enough_time(data: Dataset) -> None:
    assert plan_recipe(WHOLE, make_network(), data, 6e6).recipe == WHOLE


def test_without_time_the_head_alone_is_trained_on_one_view(data: Dataset) -> None:
    shortest = plan_recipe(WHOLE, make_network(), data, 0.6)
    assert shortest.recipe == replace(WHOLE, views=1, fine_tune=0)
    assert (
        describe_plan(shortest, True, 0.01)
        == "0.01 minutes are too short for these images on this machine: the shortest training is 1 view of each "
        "training image, the head alone"
    )


def test_more_epochs_than_those_of_the_plans_are_kept_if_there_is_time(data: Dataset) -> None:
    recipe = replace(WHOLE, epochs=20)
    assert plan_recipe(recipe, make_network(), data, 6e6).recipe == recipe


def test_views_and_epochs_of_the_user_are_not_raised(data: Dataset) -> None:
    recipe = replace(WHOLE, views=2, epochs=3)
    assert plan_recipe(recipe, make_network(), data, 6e6).recipe == recipe


def test_more_time_never_leads_to_less_training(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_measure_stages", lambda *_: (0.1, 5.0))
    network = make_network()
    found = [plan_recipe(WHOLE, network, data, REPORT_S + seconds).recipe for seconds in range(0, 200, 5)]
    epochs = [recipe.epochs if recipe.fine_tune else 0 for recipe in found]
    assert epochs == sorted(epochs)
    assert {0, 8} < set(epochs)


def test_epochs_of_a_new_network_are_reduced(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_time", lambda run: run() or 1.0)  # the step, and the evaluation of a batch
    recipe = Recipe(network="compact", epochs=50, batch_size=16)
    network = build_network("compact", data.contract.shape, len(data.labels), 0.25, 0.0)
    epoch_s = len(data.train) / 16 + len(data.val) / 16
    enough = REPORT_S + 1.3 * epoch_s * 7.5
    assert plan_recipe(recipe, network, data, enough).recipe == replace(recipe, epochs=7)
    assert plan_recipe(recipe, network, data, 0.6).recipe == replace(recipe, epochs=1)
    assert plan_recipe(recipe, network, data, 1e9).recipe == recipe


def test_weights_and_random_state_stay_the_same(data: Dataset) -> None:
    for network in (make_network(), build_network("compact", data.contract.shape, len(data.labels), 0.25, 0.0)):
        state, draws = state_of(network), torch.get_rng_state()
        plan_recipe(WHOLE, network, data, 60.0)
        assert equal(state_of(network), state)
        assert torch.equal(torch.get_rng_state(), draws)
        assert all(weights.grad is None for weights in network.parameters())
