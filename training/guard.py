"""The last good state of a training, and the likely cause of non-finite values since then."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from training.nonfinite import (
    FLEETING,
    Finding,
    LossFunction,
    find_bad,
    find_image,
    find_layer,
    find_layer_in_evaluation,
    list_gradients,
)

EXPLOSION_THRESHOLD = 10.0  # times the norm of the weights in the last good state
UNCOPIED = "the layer is unknown, because this network cannot be copied to run it again"


class Guard:
    """Remembers the last good state of a network and its optimizers.

    Args:
        network: The network in training.
        optimizers: The optimizers that train it.
    """

    def __init__(self, network: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        self._network = network
        self._optimizers = optimizers
        self.mark()

    def mark(self) -> None:
        """Remember the present state as good."""
        self._weights = {name: tensor.clone() for name, tensor in self._network.state_dict().items()}
        self._states = copy.deepcopy([optimizer.state_dict() for optimizer in self._optimizers])

    def restore(self) -> None:
        """Restore the last good state: weights, batch norm statistics and the state of the optimizers."""
        self._network.load_state_dict(self._weights)
        for optimizer, state in zip(self._optimizers, copy.deepcopy(self._states), strict=True):
            optimizer.load_state_dict(state)

    def back_off(self) -> float:
        """Restore the last good state with half the learning rates.

        Returns:
            The peak learning rate of the first optimizer.
        """
        for state in self._states:
            for group in state["param_groups"]:
                group["peak_lr"] /= 2
        self.restore()
        return float(self._states[0]["param_groups"][0]["peak_lr"])

    def explain(self, loss_of: LossFunction, inputs: Tensor, images: np.ndarray) -> str:
        """Run a batch again and describe where non-finite values start, how large the values are, and the likely cause.

        Args:
            loss_of: Computes the loss from logits.
            inputs: The batch, float32 (N, C, H, W).
            images: Index of each image among the training images, int64 (N,).

        Returns:
            Sentences for the user.
        """
        if not (twin := _copy(self._network)):
            return f"{UNCOPIED}. {self._guess_cause('', UNCOPIED)}"
        twin.train()
        layer, what = (
            find_bad("weight", twin.named_parameters())
            or find_image(inputs, images)
            or find_layer(twin, loss_of, inputs, images)
            or self._find_fleeting()
        )
        norms = ", ".join(
            f"{name} {tensor.double().norm().item():.3g}"
            + (f" with a gradient of {tensor.grad.double().norm().item():.3g}" if tensor.grad is not None else "")
            for name, tensor in twin.named_parameters()
            if layer and name.rpartition(".")[0] == layer
        )
        return f"{what}{f' (norms: {norms})' if norms else ''}. {self._guess_cause(layer, what)}"

    def _find_fleeting(self) -> Finding:
        layer, what = find_bad("gradient of", list_gradients(self._network)) or ("", "")
        return layer, FLEETING + (f", yet the {what}" if what else "")

    def explain_evaluation(self, batches: Iterable[Tensor]) -> str:
        """Describe where non-finite values start in eval mode, and the likely cause.

        Args:
            batches: All batches of the evaluation, each float32 (N, C, H, W).

        Returns:
            Sentences for the user.
        """
        if not (twin := _copy(self._network)):
            return f"{UNCOPIED}. {self._guess_cause('', UNCOPIED)}"
        twin.eval()
        layer, what = (
            find_bad("weight", twin.named_parameters())
            or find_bad("statistic", twin.named_buffers())
            or find_layer_in_evaluation(twin, batches)
        )
        return f"{what}. {self._guess_cause(layer, what)}"

    def _guess_cause(self, layer: str, what: str) -> str:
        names = [name for name, _ in self._network.named_parameters()]
        before = _measure_norm(self._weights[name] for name in names)
        growth = _measure_norm(self._network.parameters()) / max(before, 1e-3)
        if what.startswith("image"):
            return "The data are damaged, not the network"
        if growth > EXPLOSION_THRESHOLD:
            return f"Weights have exploded (their norm is {growth:.3g} times what it was): try a lower --learning-rate"
        if what.startswith("weight"):
            return "The other weights are as large as before: this value was assigned or loaded"
        return (
            f"Weights are as large as before: {'look at this layer, and ' if layer else ''}try a lower --learning-rate"
        )


def choose_reason(reasons: list[str]) -> str:
    """Choose the first explanation that names a cause.

    Args:
        reasons: Explanations of several processes, each for its share of a batch; at least one.

    Returns:
        One of them.
    """
    return next((reason for reason in reasons if not reason.startswith(FLEETING)), reasons[0])


def _copy(network: nn.Module) -> nn.Module | None:
    """Copy a network to run it with hooks; None if it cannot be copied, such as one that keeps its activations."""
    try:
        return copy.deepcopy(network)
    except (RuntimeError, TypeError):
        return None


def _measure_norm(tensors: Iterable[Tensor]) -> float:
    """Compute the norm of all finite values."""
    every = (tensor.detach().double().nan_to_num(0, 0, 0) for tensor in tensors)
    return math.sqrt(sum(tensor.square().sum().item() for tensor in every))
