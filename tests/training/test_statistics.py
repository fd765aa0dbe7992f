"""Exact statistics: every batch norm has the moments of what it sees in eval mode, over all training images."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from training.datasets import Dataset, Split
from training.networks import build_network, scale_pixels
from training.statistics import recompute_statistics
from training.train import prepare_network


def trained_a_little(name: str, split: Split) -> nn.Module:
    """A network whose moving averages lag behind: a few steps of forward passes alone."""
    torch.manual_seed(0)
    network = prepare_network(build_network(name, (8, 8, 1), 10, 1.0, 0.3), split)
    for start in range(0, 96, 32):
        network(scale_pixels(torch.from_numpy(split.images[start : start + 32])))
    return network


def see(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each batch norm is given, in eval mode: (channels, values)."""
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
def test_every_layer_has_the_moments_of_what_it_sees(name: str, digits: Dataset) -> None:
    network = trained_a_little(name, digits.train)
    recompute_statistics(network, digits.train)
    seen = see(network, scale_pixels(torch.from_numpy(digits.train.images)))
    assert len(seen) == {"compact": 8, "reference": 5}[name]
    for layer, values in seen.items():
        norm = network.get_submodule(layer)
        torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, values.var(1, unbiased=False), rtol=1e-4, atol=1e-5)


def test_computing_them_again_changes_nothing(digits: Dataset) -> None:
    network = trained_a_little("compact", digits.train)
    recompute_statistics(network, digits.train)
    before = copy.deepcopy(network.state_dict())
    corrections = recompute_statistics(network, digits.train)
    assert max(max(one.mean, one.std) for one in corrections) < 1e-5
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-6)


def test_weights_stay_and_the_network_ends_in_eval_mode(digits: Dataset) -> None:
    network = trained_a_little("reference", digits.train)
    before = copy.deepcopy(dict(network.named_parameters()))
    recompute_statistics(network, digits.train)
    assert not any(module.training for module in network.modules())
    for name, weights in network.named_parameters():
        assert torch.equal(weights, before[name])
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_corrections_name_the_layers_in_the_order_of_their_calls_and_how_far_off_they_were(digits: Dataset) -> None:
    network = trained_a_little("compact", digits.train)
    corrections = recompute_statistics(network, digits.train)
    assert [one.layer for one in corrections][:3] == ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1"]
    assert all(one.mean > 0.05 for one in corrections)  # three steps are far too few for moving averages


def test_a_network_without_batch_norm_needs_none(digits: Dataset) -> None:
    assert recompute_statistics(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits.train) == []


def test_a_layer_that_keeps_no_statistics_is_left_alone(digits: Dataset) -> None:
    network = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(64, 10))
    assert recompute_statistics(network, digits.train) == []
