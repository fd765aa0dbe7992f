"""Muon: orthogonal steps whose length does not depend on the gradient's, and weights of constant norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonalise
from training.optimizers import make_optimizers
from training.recipe import Recipe


@pytest.mark.parametrize("shape", [(16, 216), (64, 576), (64, 128), (100, 9), (1, 9), (9, 1)])
def test_orthogonalising_brings_every_singular_value_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.4
    assert values.max() < 1.3


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    matrix = torch.randn((8, 30), generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonalise(matrix) @ v.T
    assert (core - core.diag().diag()).abs().max() < 1e-4


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_orthogonalising_does_not_depend_on_the_scale(scale: float) -> None:
    matrix = torch.randn((8, 30), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(orthogonalise(scale * matrix), orthogonalise(matrix), atol=1e-4)


def test_orthogonalising_zero_gives_zero() -> None:
    assert orthogonalise(torch.zeros(8, 30)).count_nonzero() == 0


@pytest.fixture
def weights() -> nn.Parameter:
    return nn.Parameter(torch.randn((16, 8, 3, 3), generator=torch.Generator().manual_seed(0)))


def step(weights: nn.Parameter, momentum: float, *gradients: torch.Tensor, lr: float = 0.1) -> None:
    optimizer = Muon([weights], lr, momentum)
    for gradient in gradients:
        weights.grad = gradient
        optimizer.step()


def test_the_first_step_is_the_learning_rate_along_the_orthogonalised_gradient(weights: nn.Parameter) -> None:
    gradient = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
    normalised = weights.detach() * 4 / weights.detach().norm()  # sqrt of 16 filters
    step(weights, 0.6, gradient)
    expected = normalised - 0.1 * orthogonalise(gradient.flatten(1)).view_as(weights)
    assert torch.allclose(weights.detach(), expected, atol=1e-4)


def test_weights_of_any_scale_take_the_same_step() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn((16, 8, 3, 3), generator=generator) for _ in range(2))
    small, large = nn.Parameter(0.01 * start), nn.Parameter(100 * start)
    step(small, 0.6, gradient)
    step(large, 0.6, gradient)
    assert torch.allclose(small.detach(), large.detach(), atol=1e-5)


def test_momentum_includes_earlier_gradients(weights: nn.Parameter) -> None:
    first, second = (torch.randn(weights.shape, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    without, with_momentum = nn.Parameter(weights.detach().clone()), nn.Parameter(weights.detach().clone())
    step(without, 0.0, first, second)
    step(with_momentum, 0.6, first, second)
    assert not torch.allclose(without.detach(), with_momentum.detach(), atol=1e-2)
    nesterov = second + 0.6 * (0.6 * first + second)
    once = nn.Parameter(weights.detach().clone())
    step(once, 0.6, first)
    normalised = once.detach() * 4 / once.detach().norm()
    expected = normalised - 0.1 * orthogonalise(nesterov.flatten(1)).view_as(weights)
    assert torch.allclose(with_momentum.detach(), expected, atol=1e-4)


def test_weights_without_a_gradient_stay_and_zeros_stay_finite() -> None:
    unused, zeros = nn.Parameter(torch.ones(2, 3, 1, 1)), nn.Parameter(torch.zeros(2, 3, 1, 1))
    optimizer = Muon([unused, zeros], 0.1, 0.6)
    zeros.grad = torch.ones_like(zeros)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(2, 3, 1, 1))
    assert zeros.isfinite().all()


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 1, bias=False)])
def test_a_network_may_have_convolutions_alone_or_none(layer: nn.Module) -> None:
    (optimizer,) = make_optimizers(layer, Recipe(optimizer="muon"))
    assert [weights.ndim for weights in optimizer.param_groups[0]["params"]] == [
        weights.ndim for weights in layer.parameters()
    ]
