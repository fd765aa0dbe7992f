"""Muon: momentum whose steps are orthogonalised, so that every direction of a filter bank learns at the same pace."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of x + x^3 + x^5: they lift small singular values fastest
ITERATIONS = 3  # the singular values of noise then lie within about 0.7 to 1.1


class Muon(Optimizer):
    """Stochastic gradient descent with Nesterov momentum and orthogonalised steps, for convolutions before batch norm.

    A convolution's weights (filters, C, H, W) are taken as a matrix (filters, C * H * W). Batch norm makes its scale
    irrelevant, so it is held at norm sqrt(filters): then the learning rate is the share of the matrix that a step
    replaces, at every layer and all through the training. torch's own Muon takes matrices only.

    Sources: Jordan, Muon: An optimizer for hidden layers in neural networks; the held norm: Jordan, cifar10-airbench.

    Args:
        weights: of the convolutions, float32 (filters, C, H, W) each.
        lr: length of a step relative to the weights.
        momentum: share of the earlier steps' direction that stays.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take a step along the gradients."""
        for group in self.param_groups:
            for weights in group["params"]:
                state = self.state[weights]
                if not state:
                    state["momentum"] = torch.zeros_like(weights)
                velocity = state["momentum"].mul_(group["momentum"]).add_(weights.grad)
                direction = orthogonalise(weights.grad.add(velocity, alpha=group["momentum"]).flatten(1))
                weights.mul_(len(weights) ** 0.5 / weights.norm())
                weights.add_(direction.view_as(weights), alpha=-group["lr"])


def orthogonalise(matrix: Tensor) -> Tensor:
    """The matrix with every singular value moved to about 1, but for those near 0: float32 (M, N).

    By Newton-Schulz iterations, matrix products alone.
    """
    a, b, c = NEWTON_SCHULZ
    wide: Tensor = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.T
