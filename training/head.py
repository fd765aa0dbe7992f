"""The head of a pretrained network: batch norm by the moments of the features, and a dense layer learned from them.

The dense layer is a multinomial logistic regression, which has one optimum: no learning rate and no seed decide it.

Shapes: N images, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.pretrained import Head

PENALTIES = (1.0, 0.1, 0.01, 0.001)  # the strongest first: its solution is a good start for the next one
MAX_ITERATIONS = 100  # of L-BFGS


@dataclass(frozen=True, eq=False)
class HeadExamples:
    """Features with their labels.

    Attributes:
        features: float32 (N, D).
        targets: The index of each image's label, int64 (N,).
    """

    features: Tensor
    targets: Tensor


@dataclass(frozen=True)
class ChosenHead:
    """The head that validated best.

    Attributes:
        penalty: Factor of half the squared norm of the dense layer's weights, in the loss.
        val_accuracy: Its accuracy on the validation images, in 0..1.
        val_loss: Its mean cross-entropy on the validation images.
    """

    penalty: float
    val_accuracy: float
    val_loss: float


def choose_head(head: Head, train: HeadExamples, val: HeadExamples, label_weights: Tensor | None = None) -> ChosenHead:
    """Fit a head with each penalty, and keep the one with the smallest loss on the validation images.

    Args:
        head: ``norm``, ``dropout`` and ``dense``; changed in place and left in eval mode.
        train: The training features.
        val: The validation features.
        label_weights: The weight of each label in the loss, float32 (K,); None for equal weights.

    Returns:
        The chosen penalty and its figures.
    """
    best: ChosenHead | None = None
    state: dict[str, Tensor] = {}
    set_moments(head, train.features)
    nn.init.zeros_(head.dense.weight)
    nn.init.zeros_(head.dense.bias)
    for penalty in PENALTIES:
        fit_dense(head, train, penalty, label_weights)
        accuracy, loss = measure_head(head, val)
        if best is None or loss < best.val_loss:
            best = ChosenHead(penalty, accuracy, loss)
            state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    assert best is not None
    head.load_state_dict(state)
    return best


@torch.no_grad()
def set_moments(head: Head, features: Tensor) -> None:
    """Set the statistics of the batch norm layer to the exact moments of features.

    Args:
        head: The head, changed in place.
        features: float32 (N, D).
    """
    variance, mean = torch.var_mean(features.double(), 0, correction=0)
    head.norm.load_state_dict(head.norm.state_dict() | {"running_mean": mean, "running_var": variance})
    head.eval()


def fit_dense(head: Head, train: HeadExamples, penalty: float, label_weights: Tensor | None = None) -> None:
    """Fit the dense layer by L-BFGS, from its present weights.

    Args:
        head: The head, with the moments of the features; the dense layer is changed in place.
        train: The training features.
        penalty: Factor of half the squared norm of the weights, in the loss.
        label_weights: The weight of each label in the loss, float32 (K,); None for equal weights.
    """
    dense = head.dense
    with torch.no_grad():
        inputs = head.norm(train.features)
    optimizer = torch.optim.LBFGS(dense.parameters(), max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def measure_loss() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(dense(inputs), train.targets, weight=label_weights)
        loss = loss + penalty / 2 * dense.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(measure_loss)  # type: ignore[no-untyped-call]
    dense.zero_grad()


@torch.no_grad()
def measure_head(head: Head, examples: HeadExamples) -> tuple[float, float]:
    """Measure a head in eval mode.

    Args:
        head: The head.
        examples: Features with their labels.

    Returns:
        Accuracy, in 0..1, and mean cross-entropy.
    """
    logits = compute_logits(head, examples.features)
    accuracy = (logits.argmax(1) == examples.targets).double().mean().item()
    return accuracy, functional.cross_entropy(logits, examples.targets).item()


@torch.no_grad()
def compute_logits(head: Head, features: Tensor) -> Tensor:
    """Compute the logits of a head in eval mode.

    Args:
        head: The head.
        features: float32 (N, D).

    Returns:
        float32 (N, K).
    """
    logits: Tensor = head.eval()(features)
    return logits
