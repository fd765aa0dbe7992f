"""Exact statistics: every batch norm has the moments of its inputs in eval mode, over all training images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evalmode.artifact.sealing import open_artifact
from evalmode.display import Display
from tests.training.own_networks import Frozen, Keeps, Shared, SharedBuffers, mean_only, mean_only_batch_norm
from tests.training.states import equal, state_of
from training.datasets import Dataset, ReadOptions, Split
from training.export import export_run
from training.fit import fit_run
from training.loop import Execution, prepare_network
from training.networks import build_network, scale_pixels
from training.observe import observe_layers
from training.recipe import Recipe
from training.run import EXACT, Run
from training.run_config import RunConfig
from training.statistics import list_moved, recompute_statistics, sample_statistics


def trained_a_little(name: str, split: Split) -> nn.Module:
    """A network whose moving averages lag, after a few forward passes alone."""
    torch.manual_seed(0)
    network = prepare_network(build_network(name, (8, 8, 1), 10, 1.0, 0.3), split)
    for start in range(0, 96, 32):
        network(scale_pixels(torch.from_numpy(split.images[start : start + 32])))
    return network


def see(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Record the inputs of each batch norm in eval mode: (channels, values)."""
    seen: dict[str, Tensor] = {}
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, n=n: seen.update({n: x[0].transpose(0, 1).flatten(1)}))
        for n, layer in layers.items()
    ]
    with torch.no_grad():
        network.eval()(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", ["compact", "reference"])
def test_every_layer_has_the_moments_of_its_inputs(name: str, digits: Dataset) -> None:
    network = trained_a_little(name, digits.train)
    recompute_statistics(network, digits.train)
    seen = see(network, scale_pixels(torch.from_numpy(digits.train.images)))
    assert len(seen) == {"compact": 8, "reference": 5}[name]
    for layer, values in seen.items():
        norm = network.get_submodule(layer)
        torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, values.var(1, unbiased=False), rtol=1e-4, atol=1e-5)


def test_recomputing_statistics_again_changes_nothing(digits: Dataset) -> None:
    network = trained_a_little("compact", digits.train)
    recompute_statistics(network, digits.train)
    before = copy.deepcopy(network.state_dict())
    corrections = recompute_statistics(network, digits.train)
    assert max(max(one.mean, one.std) for one in corrections) < 1e-5
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-6)


def test_weights_are_unchanged_and_the_network_ends_in_eval_mode(digits: Dataset) -> None:
    network = trained_a_little("reference", digits.train)
    before = copy.deepcopy(dict(network.named_parameters()))
    recompute_statistics(network, digits.train)
    assert not any(module.training for module in network.modules())
    for name, weights in network.named_parameters():
        assert torch.equal(weights, before[name])
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_corrections_name_the_layers_in_call_order_with_their_error(digits: Dataset) -> None:
    network = trained_a_little("compact", digits.train)
    corrections = recompute_statistics(network, digits.train)
    assert [one.layer for one in corrections][:3] == ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1"]
    assert all(one.mean > 0.05 for one in corrections)  # three steps are far too few for moving averages


def test_a_network_without_batch_norm_has_no_corrections(digits: Dataset) -> None:
    assert recompute_statistics(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits.train) == []


def test_a_layer_without_moving_statistics_is_skipped(digits: Dataset) -> None:
    network = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(64, 10))
    assert recompute_statistics(network, digits.train) == []


# Only statistics that training moved


def step(network: nn.Module, split: Split) -> None:
    """Run a forward pass in train mode, which updates moving statistics."""
    network.train()
    network(scale_pixels(torch.from_numpy(split.images[:32])))


def test_statistics_that_training_did_not_move_are_unchanged(few: Split) -> None:
    torch.manual_seed(0)
    network = Frozen(1, 10)
    before = state_of(network)
    step(network, few)
    moved = list_moved(before, network.state_dict())
    assert moved == ["head"]
    corrections = recompute_statistics(network, few, moved=moved)
    assert [one.layer for one in corrections] == ["head"]
    for name in ("norm.running_mean", "norm.running_var"):
        assert torch.equal(network.state_dict()[name], before[name])
    head = see(network, scale_pixels(torch.from_numpy(few.images)))["head"]
    torch.testing.assert_close(network.head.running_mean, head.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [mean_only, mean_only_batch_norm])
def test_a_layer_with_a_moving_mean_alone_is_skipped(
    few: Split, build: Callable[[int, int, int, int], nn.Module]
) -> None:
    network = build(1, 8, 8, 10)
    before = state_of(network)
    step(network, few)
    moved = list_moved(before, network.state_dict())
    assert moved == ["stem.1", "norm"]
    kept = state_of(network)["stem.1.running_mean"]
    assert [one.layer for one in observe_layers(network, few.images)] == ["norm"]
    assert [one.layer for one in recompute_statistics(network, few, moved=moved)] == ["norm"]
    assert torch.equal(network.state_dict()["stem.1.running_mean"], kept)


def test_statistics_of_a_layer_with_frozen_weights_are_moved(few: Split) -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    network[0].requires_grad_(False)
    before = state_of(network)
    step(network, few)
    assert list_moved(before, network.state_dict()) == ["0"]


@pytest.mark.parametrize("kind", [Shared, SharedBuffers])
def test_statistics_shared_by_several_inputs_stay_as_training_moved_them(kind: type[nn.Module], few: Split) -> None:
    torch.manual_seed(0)
    network = kind(1, 10)
    step(network, few)
    before = state_of(network)
    assert recompute_statistics(network, few) == []
    assert equal(state_of(network), before)


def test_a_layer_that_is_called_by_keyword_is_found(few: Split) -> None:
    network = Keeps(1, 10)
    assert [one.layer for one in recompute_statistics(network, few)] == ["norm"]


def test_sampled_statistics_approximate_the_exact_ones_and_are_restored(digits: Dataset) -> None:
    network = trained_a_little("compact", digits.train)
    before, moved = state_of(network), [name for name, layer in network.named_modules() if "norm" in name]
    exact = copy.deepcopy(network)
    recompute_statistics(exact, digits.train)
    with sample_statistics(network, digits.train, moved, 32):
        sampled = state_of(network)
    assert equal(state_of(network), before)
    for name, tensor in sampled.items():
        if "running" in name:
            std = exact.state_dict()[name.replace("mean", "var")].sqrt() if name.endswith("mean") else tensor
            assert ((tensor - exact.state_dict()[name]).abs() / (std + 1e-3)).median() < 0.2, name
            assert not torch.equal(tensor, before[name])


def test_large_images_are_sampled_in_batches_of_a_training_step(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if one image has as many pixels as an evaluation batch: alone, it would be the whole distribution."""
    network = trained_a_little("reference", digits.train)
    exact, sizes = copy.deepcopy(network), set[int]()
    recompute_statistics(exact, digits.train)
    moved = list(see(exact, scale_pixels(torch.from_numpy(digits.train.images[:2]))))
    monkeypatch.setattr("training.evaluation.EVALUATION_PIXELS", 8 * 8)
    hook = network.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    with sample_statistics(network, digits.train, moved, 32):
        hook.remove()
        sampled = state_of(network)
    assert sizes <= {2, *range(24, 33)}  # two to see the order of the layers
    last = f"{moved[-1]}.running_var"  # one value per image: it has no variance in one image
    assert ((sampled[last] + 1e-6) / (exact.state_dict()[last] + 1e-6)).log().abs().median() < 0.5


def test_exact_statistics_are_the_same_in_batches_of_one(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(digits.train.images[:64], digits.train.targets[:64])
    network = trained_a_little("reference", digits.train)
    alone = copy.deepcopy(network)
    recompute_statistics(network, split)
    monkeypatch.setattr("training.evaluation.EVALUATION_PIXELS", 8 * 8)
    recompute_statistics(alone, split)
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_statistics_are_restored_if_validation_fails(few: Split) -> None:
    network = trained_a_little("reference", few)
    before = state_of(network)
    with pytest.raises(KeyboardInterrupt), sample_statistics(network, few, ["features.1"], 32):
        raise KeyboardInterrupt
    assert equal(state_of(network), before)


def test_a_frozen_backbone_is_exported_with_its_own_statistics(
    few: Split, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the function of the command; the artifact has the backbone's statistics."""
    recipe = Recipe("tests.training.own_networks:frozen", epochs=1, dropout=0.0)
    dataset = Dataset(digits.source, digits.labels, few, digits.val, digits.test)
    run = Run.create(tmp_path / "run", RunConfig.of(dataset, ReadOptions(), recipe))
    network = run.config.build_network()
    before = state_of(network)
    fit_run(run, network, dataset, Execution(), Display().callbacks())
    printed = capsys.readouterr().out
    assert "kept      the moving statistics of 1 of 2 batch norm layers: training did not change them\n" in printed
    exact = run.read_weights(EXACT)
    assert torch.equal(exact["norm.running_var"], before["norm.running_var"])
    assert not torch.equal(exact["head.running_var"], run.read_weights("best")["head.running_var"])
    (run.folder / f"{EXACT}.safetensors").unlink()
    for mirrored in (False, True):  # recomputed by the export, as before
        _, manifest = open_artifact(export_run(run, dataset, mirrored).artifact)
        layers = {layer["name"].removeprefix("network."): layer for layer in manifest.properties["moments"]["layers"]}
        assert layers["norm"].keys() == {"name", "frozen"}  # its statistics are in the weights alone
        assert layers["head"]["variance"] == pytest.approx(exact["head.running_var"].tolist(), rel=1e-3) or mirrored


def test_the_accuracy_of_exported_weights_is_reported_if_it_differs_from_their_epochs(
    few: Split, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset(digits.source, digits.labels, few, digits.val, digits.test)
    run = Run.create(tmp_path / "run", RunConfig.of(dataset, ReadOptions(), Recipe(epochs=1)))
    torch.manual_seed(0)
    network = run.config.build_network()
    monkeypatch.setattr("training.scratch.evaluate", lambda *_: (0.125, 1.0))  # of the weights that are exported
    fit_run(run, network, dataset, Execution(), Display().callbacks())
    printed = capsys.readouterr().out
    assert "with 95% confidence; the weights that are exported reach 0.1250\n" in printed
    assert printed.index("best ") < printed.index("the epoch was chosen by")
    assert "kept " not in printed
