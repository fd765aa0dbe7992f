"""The compact network: its cost, its whitening and the image sizes it accepts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.errors import NetworkError
from training.networks import build_network, count_multiply_adds
from training.networks.compact import Compact


def compact(height: int = 32, width: int = 32, channels: int = 3, classes: int = 10, factor: float = 1.0) -> Compact:
    network = build_network("compact", (height, width, channels), classes, factor, 0.0)
    assert isinstance(network, Compact)
    return network


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [*range(8, 50), 64, 96, 128])
def test_it_costs_no_more_multiply_adds_than_the_reference(side: int, channels: int) -> None:
    shape = (side, side, channels)
    cost, limit = (count_multiply_adds(build_network(n, shape, 10, 1.0, 0.0), shape) for n in ("compact", "reference"))
    assert cost <= limit


def test_multiply_adds_of_the_reference_are_those_of_the_lecture() -> None:
    layers = [32 * 32 * 32 * 27, 16 * 16 * 32 * 288, 16 * 16 * 64 * 288, 8 * 8 * 64 * 576, 4096 * 128, 128 * 10]
    assert count_multiply_adds(build_network("reference", (32, 32, 3), 10, 1.0, 0.0), (32, 32, 3)) == sum(layers)


@pytest.mark.parametrize(
    ("height", "width", "channels", "classes"),
    [(8, 8, 1, 2), (8, 9, 3, 10), (28, 28, 1, 10), (32, 32, 3, 1000), (8, 128, 3, 5), (47, 64, 1, 3), (128, 128, 3, 2)],
)
def test_any_size_gives_a_logit_per_image_and_label(height: int, width: int, channels: int, classes: int) -> None:
    network = compact(height, width, channels, classes)
    logits = network(torch.randn(3, channels, height, width))
    assert logits.shape == (3, classes)
    logits.sum().backward()
    learned = [weights.grad for weights in network.parameters() if weights.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in learned)


@pytest.mark.parametrize(("height", "width"), [(7, 32), (32, 7), (1, 1)])
def test_images_that_are_too_small_are_refused_with_both_sizes(height: int, width: int) -> None:
    with pytest.raises(NetworkError, match=rf"images of {height}x{width} are too small .* at least 8x8"):
        compact(height, width)


def test_a_factor_scales_the_filters_of_every_block() -> None:
    def filters(factor: float) -> list[int]:
        return [m.out_channels for m in compact(factor=factor).modules() if isinstance(m, nn.Conv2d)][1:]

    assert filters(2.0) == [2 * count for count in filters(1.0)]
    assert filters(0.5) == [count // 2 for count in filters(1.0)]


def whitened(channels: int) -> tuple[Compact, torch.Tensor]:
    """A network whitened with correlated images, and its first convolution's output: (filters, positions)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((50, channels, 9, 9), generator=generator)
    images = images.cumsum(2).cumsum(3) / 40 - 1  # neighbouring pixels are similar
    network = compact(9, 9, channels)
    network.whiten(images)
    return network, network.whitening(images).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening_gives_uncorrelated_directions_of_equal_scale(channels: int) -> None:
    _, seen = whitened(channels)
    positive, negative = seen.chunk(2)
    moments = (positive @ positive.T / positive.shape[1]).detach()
    strong = moments.diag() > 0.5  # the epsilon damps weak directions
    assert strong.sum() >= 2
    assert (moments - moments.diag().diag()).abs().max() < 0.02
    assert moments.diag().max() < 1.01
    assert torch.equal(positive, -negative)


def test_whitening_filters_are_not_learned() -> None:
    network, _ = whitened(3)
    network(torch.randn(4, 3, 9, 9)).sum().backward()
    assert network.whitening.weight.grad is None


def test_constant_images_are_whitened_without_a_division_by_zero() -> None:
    network = compact(8, 8, 1)
    network.whiten(torch.zeros(10, 1, 8, 8))
    assert network.whitening.weight.isfinite().all()
    assert network(torch.zeros(2, 1, 8, 8)).isfinite().all()


def test_the_largest_value_of_each_feature_map_decides_at_any_position() -> None:
    """A pattern shifted by sixteen pixels, the whole stride of the network, gives the same logits."""
    torch.manual_seed(0)
    network = compact(96, 96).eval()
    pattern = torch.randn(1, 3, 32, 32)
    images = torch.zeros(2, 3, 96, 96)
    images[0, :, 32:64, 16:48] = pattern
    images[1, :, 32:64, 32:64] = pattern
    here, shifted = network(images)
    assert torch.allclose(here, shifted, atol=1e-5)


@pytest.mark.parametrize("side", [12, 48])
def test_the_filters_in_the_report_are_the_linear_part_of_both_layers(side: int) -> None:
    """The output for an input minus the output for its negative is twice the linear part."""
    torch.manual_seed(0)
    network = compact(side, side)
    network.whiten(torch.rand(50, 3, side, side) * 2 - 1)
    convolution = network.get_submodule(network.first_learned)
    assert isinstance(convolution, nn.Conv2d)

    def see(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(nn.functional.relu(network.whitening(x)), convolution.weight)

    x = torch.randn(2, 3, side, side)
    seen = nn.functional.conv2d(x, network.see_filters(), stride=network.whitening.stride)
    assert torch.allclose(see(x) - see(-x), 2 * seen, atol=1e-3)
