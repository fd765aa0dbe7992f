"""The reference network: its size, its layers with Keras' defaults, and its refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.errors import NetworkError
from training.networks import build_network
from training.networks.same_padding import SameConv2d


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """The lecture's network for CIFAR-10."""
    torch.manual_seed(0)
    return build_network("reference", (32, 32, 3), 10, 1.0, 0.5)


def count_values(network: nn.Module) -> int:
    """Weights and moving statistics; without the step counters of batch norm."""
    return sum(value.numel() for name, value in network.state_dict().items() if "num_batches" not in name)


def count_trainable(network: nn.Module) -> int:
    return sum(weights.numel() for weights in network.parameters() if weights.requires_grad)


def test_the_reference_has_592_554_values_for_cifar10(reference: nn.Module) -> None:
    assert count_values(reference) == 592_554


def test_591_914_values_of_the_reference_are_trainable(reference: nn.Module) -> None:
    assert count_trainable(reference) == 591_914


def test_the_reference_has_469_098_values_for_28x28_grey() -> None:
    assert count_values(build_network("reference", (28, 28, 1), 10, 1.0, 0.5)) == 469_098


def test_the_layers_are_the_lectures_in_its_order(reference: nn.Module) -> None:
    layers = [type(layer).__name__ for layer in reference.modules() if not list(layer.children())]
    block = ["SameConv2d", "BatchNorm2d", "LeakyReLU"]
    assert layers == [*block * 4, "Flatten", "Linear", "BatchNorm1d", "LeakyReLU", "Dropout", "Linear"]


def test_the_convolutions_are_the_lectures(reference: nn.Module) -> None:
    convolutions = [layer for layer in reference.modules() if isinstance(layer, SameConv2d)]
    facts = [(c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in convolutions]
    assert facts == [
        (3, 32, (3, 3), (1, 1)),
        (32, 32, (3, 3), (2, 2)),
        (32, 64, (3, 3), (1, 1)),
        (64, 64, (3, 3), (2, 2)),
    ]


def test_every_leaky_relu_has_slope_0_3(reference: nn.Module) -> None:
    assert [m.negative_slope for m in reference.modules() if isinstance(m, nn.LeakyReLU)] == [0.3] * 5


def test_every_batch_norm_has_epsilon_1e_3_and_momentum_0_01(reference: nn.Module) -> None:
    norms = [m for m in reference.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert [(m.eps, m.momentum) for m in norms] == [(1e-3, 0.01)] * 5


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_dropout_has_the_requested_share(share: float) -> None:
    network = build_network("reference", (8, 8, 1), 2, 1.0, share)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [share]


def test_initial_weights_are_glorot_uniform(reference: nn.Module) -> None:
    for layer in reference.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            receptive = math.prod(layer.weight.shape[2:])
            bound = math.sqrt(6 / ((layer.weight.shape[0] + layer.weight.shape[1]) * receptive))
            assert layer.weight.abs().max().item() <= bound
            assert layer.weight.abs().max().item() > 0.98 * bound
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06)


def test_initial_biases_are_zero(reference: nn.Module) -> None:
    biases = [m.bias for m in reference.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(biases) == 6
    assert all(bias is not None and not bias.count_nonzero() for bias in biases)


def test_batch_norm_starts_as_the_identity(reference: nn.Module) -> None:
    for norm in reference.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert {*norm.weight.tolist(), *norm.running_var.tolist()} == {1}
            assert {*norm.bias.tolist(), *norm.running_mean.tolist()} == {0}


def test_the_outputs_are_raw_logits() -> None:
    torch.manual_seed(0)
    logits = build_network("reference", (8, 8, 1), 5, 1.0, 0).eval()(100 * torch.randn(8, 1, 8, 8))
    assert logits.min() < 0
    assert (logits.sum(1) - 1).abs().min() > 1e-3  # no softmax


@pytest.mark.parametrize(
    ("channels", "height", "width", "classes"),
    [(1, 4, 4, 2), (3, 32, 32, 10), (1, 28, 28, 10), (3, 33, 20, 7), (3, 5, 64, 100), (1, 7, 7, 3)],
)
def test_any_size_gives_a_logit_per_image_and_label(channels: int, height: int, width: int, classes: int) -> None:
    network = build_network("reference", (height, width, channels), classes, 1.0, 0.5)
    assert network(torch.zeros(3, channels, height, width)).shape == (3, classes)


@pytest.mark.parametrize(("height", "width"), [(3, 32), (32, 3), (1, 1)])
def test_images_that_are_too_small_are_refused_with_both_sizes(height: int, width: int) -> None:
    with pytest.raises(NetworkError, match=rf"images of {height}x{width} are too small .* at least 4x4"):
        build_network("reference", (height, width, 3), 10, 1.0, 0.5)


def test_an_unknown_network_is_refused_with_the_known_names() -> None:
    with pytest.raises(NetworkError, match="no network 'resnet': choose compact, reference, "):
        build_network("resnet", (32, 32, 3), 10, 1.0, 0.5)


def test_a_network_error_has_the_exit_code_of_wrong_usage() -> None:
    assert NetworkError.exit_code == 2
