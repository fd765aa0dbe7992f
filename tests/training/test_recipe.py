"""Recipes: the lecture's, compact's adapted to the data, and the user's own choices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.test_datasets import write_classes
from training.datasets import DATASETS, Dataset, Split, load_dataset
from training.errors import NetworkError
from training.recipe import Recipe, choose_recipe

OWN = "tests.training.own_networks:plain"


def dataset(count: int = 50_000, height: int = 32, width: int = 32) -> Dataset:
    split = Split(np.zeros((1, height, width, 3), np.uint8).repeat(1, 0), np.zeros(1, np.int64))
    train = Split(np.broadcast_to(split.images, (count, height, width, 3)), np.zeros(count, np.int64))
    return Dataset("photos", ("a", "b"), train, split, split)


def test_the_references_recipe_is_the_lectures() -> None:
    recipe = choose_recipe("reference", dataset())
    assert recipe == Recipe("reference", 1.0, 10, 32, "adam", 5e-4, 0.0, 0.0, 0.5, False, 0, False, 0)


def test_a_users_network_gets_the_lectures_recipe_without_dropout() -> None:
    assert choose_recipe(OWN, dataset()) == Recipe(OWN, dropout=0.0)


@pytest.mark.parametrize("network", ["compact", "reference", OWN])
def test_choices_of_the_user_replace_those_of_the_recipe(network: str) -> None:
    chosen = {
        "epochs": 3,
        "batch_size": 7,
        "learning_rate": 0.3,
        "weight_decay": 0.1,
        "label_smoothing": 0.2,
        "mirror": False,
        "shift": 0,
        "balance": True,
        "seed": 5,
    }
    recipe = choose_recipe(network, dataset(), **chosen)
    assert {name: getattr(recipe, name) for name in chosen} == chosen


def test_options_that_are_none_keep_the_recipe() -> None:
    assert choose_recipe("compact", dataset(), epochs=None, shift=None) == choose_recipe("compact", dataset())


@pytest.mark.parametrize("chosen", [{"width": 2.0}, {"dropout": 0.1}, {"dropout": 0.0}])
def test_width_and_dropout_of_a_users_network_are_refused(chosen: dict[str, float]) -> None:
    with pytest.raises(NetworkError, match=rf"--(width|dropout) is for compact, reference.*: {OWN} decides its own"):
        choose_recipe(OWN, dataset(), **chosen)


@pytest.mark.parametrize(("count", "batch_size"), [(50_000, 512), (20_480, 512), (4_000, 100), (100, 32), (10, 32)])
def test_a_small_data_set_has_smaller_batches(count: int, batch_size: int) -> None:
    assert choose_recipe("compact", dataset(count=count)).batch_size == batch_size


@pytest.mark.parametrize(
    ("height", "width", "shift"), [(8, 8, 0), (28, 28, 2), (32, 32, 2), (64, 32, 2), (128, 128, 9)]
)
def test_shifts_are_proportional_to_the_image_size(height: int, width: int, shift: int) -> None:
    assert choose_recipe("compact", dataset(height=height, width=width)).shift == shift


def test_characters_are_not_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [name for name, one in DATASETS.items() if one.has_characters] == ["digits", "mnist"]
    for network in ("compact", "efficientnet-lite0"):
        assert not choose_recipe(network, load_dataset("digits")).mirror
        assert choose_recipe(network, dataset()).mirror
    write_classes(tmp_path / "digits", 9)  # a folder that is named like a data set
    monkeypatch.chdir(tmp_path)
    assert choose_recipe("compact", load_dataset("digits")).mirror
