"""Batch norm is observed without side effects, and its statistics are correct."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from training.datasets import Dataset, Split
from training.networks import scale_pixels
from training.networks.reference import Reference
from training.observe import QUANTILE_VALUES, observe_layers, sample_images


@pytest.fixture
def network(few: Split) -> Reference:
    """A network whose moving statistics have begun to move, with gradients, partly frozen in eval mode."""
    torch.manual_seed(3)
    network = Reference(1, 8, 8, 10)
    network(scale_pixels(torch.from_numpy(few.images))).sum().backward()
    network.features[4].eval()
    return network


def test_observing_a_network_changes_nothing(network: Reference, few: Split) -> None:
    before, gradients = (
        copy.deepcopy(network),
        [one.grad.clone() for one in network.parameters() if one.grad is not None],
    )
    random = torch.get_rng_state()
    observe_layers(network, few.images)
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in before.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    assert len(gradients) == len(list(network.parameters()))
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert [module.training for module in network.modules()] == [module.training for module in before.modules()]
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_observations_are_repeatable_with_dropout(few: Split) -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.BatchNorm1d(64))
    assert observe_layers(network, few.images) == observe_layers(network, few.images)


def test_statistics_equal_those_of_numpy(network: Reference, few: Split) -> None:
    layers = {layer.layer: asdict(layer) for layer in observe_layers(network, few.images)}
    assert list(layers) == ["features.1", "features.4", "features.7", "features.10", "classifier.2"]
    with torch.no_grad():
        twin = copy.deepcopy(network).train()
        x = scale_pixels(torch.from_numpy(few.images))
        inputs = {"features.1": twin.features[0](x), "classifier.2": twin.classifier[:2](twin.features(x))}
    for name, tensor in inputs.items():
        values, seen = tensor.double().numpy(), layers[name]
        axes = (0, 2, 3)[: values.ndim - 1]
        mean, variance = values.mean(axes), values.var(axes, ddof=1)
        layer: Any = network.get_submodule(name)
        moving_mean, moving_variance = layer.running_mean.double().numpy(), layer.running_var.double().numpy()
        assert seen["channels"] == len(mean)
        assert seen["batch_mean"] == pytest.approx(mean.mean(), abs=1e-6)
        assert seen["batch_std"] == pytest.approx(np.sqrt(variance).mean(), rel=1e-5)
        assert seen["moving_mean"] == pytest.approx(moving_mean.mean(), abs=1e-6)
        assert seen["moving_std"] == pytest.approx(np.sqrt(moving_variance).mean(), rel=1e-5)
        quantiles = [seen["low"], seen["median"], seen["high"]]
        assert quantiles == pytest.approx(np.quantile(values, [0.1, 0.5, 0.9]).tolist(), abs=1e-5)
        gaps = (mean - moving_mean) / np.sqrt(moving_variance + layer.eps)
        ratios = np.log((variance + layer.eps) / (moving_variance + layer.eps)) / 2
        assert seen["mean_gap"] == pytest.approx(np.sqrt((gaps**2).mean()), rel=1e-4)
        assert seen["std_gap"] == pytest.approx(np.sqrt((ratios**2).mean()), rel=1e-4)
        assert {type(value) for value in seen.values()} == {str, int, float}  # types of JSON


def test_moving_statistics_that_have_converged_leave_no_gap(few: Split) -> None:
    norm = nn.BatchNorm1d(64, momentum=1.0)
    network = nn.Sequential(nn.Flatten(), norm)
    assert observe_layers(network, few.images)[0].mean_gap > 0.1
    network(scale_pixels(torch.from_numpy(few.images)))
    (layer,) = observe_layers(network, few.images)
    assert (layer.mean_gap, layer.std_gap) == pytest.approx((0, 0), abs=1e-5)  # even for pixels that never change


def test_a_sample_of_many_values_has_approximately_their_quantiles() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2 * QUANTILE_VALUES // 2**14 + 7, 64, 256, 1), np.uint8)
    (layer,) = observe_layers(nn.Sequential(nn.BatchNorm2d(1)), images)
    assert (layer.low, layer.median, layer.high) == pytest.approx((-0.8, 0.0, 0.8), abs=0.02)


def test_batch_norm_without_moving_statistics_is_left_out(few: Split) -> None:
    network = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(64, 10))
    assert observe_layers(network, few.images) == []


def test_the_sample_holds_every_label(digits: Dataset) -> None:
    order = np.argsort(digits.train.targets)  # the order of folders
    numbered = np.broadcast_to(digits.train.targets[order].astype(np.uint8)[:, None, None, None], (len(order), 8, 8, 1))
    sample = sample_images(Split(numbered, digits.train.targets[order]))
    assert len(sample) == 256
    assert np.bincount(sample[:, 0, 0, 0], minlength=10).min() >= 20


@pytest.mark.parametrize(("images", "side", "expected"), [(40, 8, 40), (999, 32, 256), (999, 128, 16), (5, 1024, 2)])
def test_fewer_large_images_are_sampled(images: int, side: int, expected: int) -> None:
    split = Split(np.broadcast_to(np.uint8(0), (images, side, side, 3)), np.zeros(images, np.int64))
    assert len(sample_images(split)) == expected
