"""The Muon optimizer: momentum with orthogonalised steps, so that all directions of a matrix learn equally fast."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5: they increase small singular values fastest
EPS = 1e-7  # of norms: weights and gradients may be all 0
ITERATIONS = 3  # then the singular values of random matrices are within about 0.7 to 1.1


class Muon(Optimizer):
    """Stochastic gradient descent with Nesterov momentum and orthogonalised steps, for convolutions before batch norm.

    The weights of a convolution, (filters, C, H, W), are treated as a matrix (filters, C * H * W). Batch norm makes
    their scale irrelevant, so before each step they are scaled to the norm sqrt(filters). The learning rate is then the
    length of a step relative to the weights, in every layer and throughout the training. torch's Muon supports matrices
    only.

    Sources: Jordan, Muon: An optimizer for hidden layers in neural networks; the fixed norm: Jordan, cifar10-airbench.

    Args:
        weights: The weights of the convolutions, each float32 (filters, C, H, W).
        lr: The learning rate, above 0.
        momentum: The factor of the velocity in each step, in [0, 1).
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update the weights with their gradients."""
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                state = self.state[weights]
                if not state:
                    state["momentum"] = torch.zeros_like(weights)
                velocity = state["momentum"].mul_(group["momentum"]).add_(weights.grad)
                direction = orthogonalise(weights.grad.add(velocity, alpha=group["momentum"]).flatten(1))
                weights.mul_(len(weights) ** 0.5 / weights.norm().clamp(min=EPS))
                weights.add_(direction.view_as(weights), alpha=-group["lr"])


def orthogonalise(matrix: Tensor) -> Tensor:
    """Move all singular values of a matrix, except those near 0, to about 1.

    It uses Newton-Schulz iterations, which need matrix products only.

    Args:
        matrix: float32 (M, N).

    Returns:
        The orthogonalised matrix, float32 (M, N).
    """
    a, b, c = NEWTON_SCHULZ
    wide: Tensor = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / (wide.norm() + EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.T
