"""Features by ONNX Runtime equal those of torch, and the ones on the disk are used only if they are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evalmode.artifact.tensors import Floats
from training.callbacks import SILENT, Callbacks
from training.datasets import Dataset, ReadOptions, Split
from training.feature_cache import HEAD_VIEWS, FeatureCache
from training.features import BATCH, Features, compute_features, open_backbone
from training.networks import PretrainedNetwork, make_inputs
from training.ranks import ALONE
from training.recipe import Recipe
from training.run_config import RunConfig
from training.views import make_views

from .graphs import keep_graphs
from .tiny_backbone import make_dataset, make_network

RECIPE = Recipe(network="tiny", fine_tune=1, views=3, mirror=True)
CUT = 2  # the stages before the one that is trained


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(autouse=True)
def _convert_once(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.features.convert", keep_graphs(graphs))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return make_dataset()


@pytest.fixture
def network() -> PretrainedNetwork:
    return make_network()


@torch.no_grad()
def extract(network: PretrainedNetwork, images: np.ndarray) -> Floats:
    """Features by torch."""
    return network.extract(make_inputs(torch.from_numpy(images))).numpy()


class Counter:
    """Counts the images whose features are computed."""

    def __init__(self) -> None:
        self.images = 0

    def count(self, stage: str, done: int, total: int) -> None:
        assert stage == "features"
        assert 0 < done <= total
        self.images = done


def open_cache(folder: Path, network: PretrainedNetwork, data: Dataset, recipe: Recipe = RECIPE) -> FeatureCache:
    return FeatureCache(folder, network, RunConfig.of(data, ReadOptions(), recipe), data)


def load(folder: Path, network: PretrainedNetwork, data: Dataset, recipe: Recipe = RECIPE) -> tuple[Features, int]:
    """The features, and how many were computed."""
    counter = Counter()
    cache = open_cache(folder, network, data, recipe)
    return cache.load_or_compute(ALONE, Callbacks(on_load=counter.count)), counter.images


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "features").iterdir()}


def test_features_equal_those_of_torch(network: PretrainedNetwork, data: Dataset) -> None:
    assert len(data.train) % BATCH == 0
    assert len(data.val) % BATCH != 0  # the last batch is smaller
    for split in (data.train, data.val):
        np.testing.assert_allclose(
            compute_features(network, [split.images])[0], extract(network, split.images), rtol=1e-5, atol=1e-5
        )


def test_the_output_at_a_cut_leads_to_the_same_features(network: PretrainedNetwork, data: Dataset) -> None:
    for cut in (1, 2, 3):
        features, maps = open_backbone(network, cut, data.contract.shape)(data.val.images)
        with torch.no_grad(), network.start_at(cut):
            after = network.extract(torch.from_numpy(maps))
        np.testing.assert_allclose(features, after.numpy(), rtol=1e-5, atol=1e-5)


def test_without_a_frozen_stage_the_images_are_the_maps(network: PretrainedNetwork, data: Dataset) -> None:
    _, maps = open_backbone(network, 0, data.contract.shape)(data.val.images)
    assert np.array_equal(maps, data.val.images)


def test_the_cache_holds_features_and_maps_of_every_view(
    network: PretrainedNetwork, data: Dataset, tmp_path: Path
) -> None:
    cache = open_cache(tmp_path, network, data)
    features = cache.load_or_compute(ALONE, SILENT)
    train, val = cache.open_maps()
    count = len(data.train)
    assert features.train.shape[:2] == (HEAD_VIEWS, count)
    assert train.images.shape[:2] == (count, RECIPE.views)
    assert np.array_equal(train.targets, data.train.targets)
    for view in range(RECIPE.views):
        images = make_views(data.train.images, view, np.arange(count), RECIPE.mirror, RECIPE.seed)
        if view < HEAD_VIEWS:
            np.testing.assert_allclose(features.train[view], extract(network, images), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            maps = network.run_stages(make_inputs(torch.from_numpy(images)), 0, CUT).numpy()
        np.testing.assert_allclose(train.images[:, view], maps, rtol=2e-3, atol=1e-4)  # float16
    with torch.no_grad(), network.start_at(CUT):
        after = network.extract(make_inputs(torch.from_numpy(val.images)))
    np.testing.assert_allclose(features.val, after.numpy(), rtol=2e-3, atol=1e-3)
    cache.remove_maps()
    assert sorted(read_all(tmp_path)) == ["features.json", "features.safetensors"]


def test_features_on_the_disk_are_used(network: PretrainedNetwork, data: Dataset, tmp_path: Path) -> None:
    computed, count = load(tmp_path, network, data)
    assert count == RECIPE.views * len(data.train) + len(data.val) + len(data.test)
    files = read_all(tmp_path)
    loaded, count = load(tmp_path, network, data)
    assert count == 0
    assert all(np.array_equal(getattr(loaded, name), array) for name, array in vars(computed).items())
    assert read_all(tmp_path) == files


def change_weights(network: PretrainedNetwork, data: Dataset) -> tuple[PretrainedNetwork, Dataset, Recipe]:
    with torch.no_grad():
        next(network.stages[2].parameters())[0, 0, 0, 0] += 1e-3
    return network, data, RECIPE


def change_statistics(network: PretrainedNetwork, data: Dataset) -> tuple[PretrainedNetwork, Dataset, Recipe]:
    network.get_buffer("stages.0.1.running_mean")[0] += 1e-3
    return network, data, RECIPE


def change_data(network: PretrainedNetwork, data: Dataset) -> tuple[PretrainedNetwork, Dataset, Recipe]:
    images = data.test.images.copy()
    images[0, 0, 0, 0] ^= 1
    return network, replace(data, test=Split(images, data.test.targets)), RECIPE


def change(**recipe: object) -> Callable[[PretrainedNetwork, Dataset], tuple[PretrainedNetwork, Dataset, Recipe]]:
    return lambda network, data: (network, data, replace(RECIPE, **recipe))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(change_weights, id="weights"),
        pytest.param(change_statistics, id="statistics"),
        pytest.param(change_data, id="data"),
        pytest.param(change(views=2), id="views"),
        pytest.param(change(mirror=False), id="mirror"),
        pytest.param(change(seed=1), id="seed"),
        pytest.param(change(fine_tune=2), id="stages"),
    ],
)
def test_features_of_other_weights_data_or_views_are_computed_again(
    network: PretrainedNetwork,
    data: Dataset,
    tmp_path: Path,
    changed: Callable[[PretrainedNetwork, Dataset], tuple[PretrainedNetwork, Dataset, Recipe]],
) -> None:
    load(tmp_path, network, data)
    network, data, recipe = changed(network, data)
    _, count = load(tmp_path, network, data, recipe)
    assert count == recipe.views * len(data.train) + len(data.val) + len(data.test)


def test_a_trained_head_does_not_change_what_features_depend_on(
    network: PretrainedNetwork, data: Dataset, tmp_path: Path
) -> None:
    load(tmp_path, network, data)
    torch.nn.init.ones_(network.head.dense.weight)
    assert load(tmp_path, network, data)[1] == 0


@pytest.mark.parametrize("name", ["features.safetensors", "features.json", "train-maps.npy", "val-maps.npy"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_files_are_replaced(
    network: PretrainedNetwork, data: Dataset, tmp_path: Path, name: str, damage: str
) -> None:
    load(tmp_path, network, data)
    files = read_all(tmp_path)
    path = tmp_path / "features" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert load(tmp_path, network, data)[1] > 0
    assert read_all(tmp_path) == files


def test_an_interrupted_computation_leads_to_the_same_files(
    network: PretrainedNetwork, data: Dataset, tmp_path: Path
) -> None:
    load(tmp_path / "whole", network, data)

    def stop(_: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    cache = open_cache(tmp_path / "stopped", network, data)
    with pytest.raises(KeyboardInterrupt):
        cache.load_or_compute(ALONE, Callbacks(on_load=stop))
    assert "features.json" not in read_all(tmp_path / "stopped")
    load(tmp_path / "stopped", network, data)
    assert read_all(tmp_path / "stopped") == read_all(tmp_path / "whole")
