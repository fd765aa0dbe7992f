"""Non-finite values in training: where they start, the likely cause, and a return to the last good state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.hooks import watch_outputs

EXPLOSION_THRESHOLD = 10.0  # times the norm of the weights in the last good state
NAMED_IMAGES = 5
FLEETING = "the output of every layer is finite when it is run again"
UNCOPIED = "the layer is unknown, because this network cannot be copied to run it again"

LossFunction = Callable[[Tensor], Tensor]
Finding = tuple[str, str]  # name of a layer, "" for none, and a description
PassedGradient = tuple[str, bool]  # name of a layer, and whether the gradient of its output has non-finite values


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
            _find_bad("weight", twin.named_parameters())
            or _find_image(inputs, images)
            or _find_layer(twin, loss_of, inputs, images)
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
        layer, what = _find_bad("gradient of", _list_gradients(self._network)) or ("", "")
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
            _find_bad("weight", twin.named_parameters())
            or _find_bad("statistic", twin.named_buffers())
            or _find_layer_in_evaluation(twin, batches)
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


def _find_bad(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> Finding | None:
    """Find the first tensor with non-finite values: its layer and a description."""
    for name, tensor in tensors:
        if count := _count_bad(tensor):
            return name.rpartition(".")[0], f"{kind} {name} is NaN or infinite in {count} of {tensor.numel()} values"
    return None


def _find_image(inputs: Tensor, images: np.ndarray) -> Finding | None:
    named = _name_images(inputs, images)
    return ("", f"{named} of the training images holds values that are NaN or infinite") if named else None


def _name_images(values: Tensor, images: np.ndarray) -> str:
    """Name the images of a batch whose values are not finite; "" if there are none."""
    bad = images[(~values.isfinite()).flatten(1).any(1).cpu().numpy()]
    named = ", ".join(map(str, bad[:NAMED_IMAGES])) + (", ..." if len(bad) > NAMED_IMAGES else "")
    return f"image {named}" if len(bad) else ""


def _list_gradients(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, learned.grad) for name, learned in network.named_parameters() if learned.grad is not None)


def _find_layer(network: nn.Module, loss_of: LossFunction, inputs: Tensor, images: np.ndarray) -> Finding | None:
    """Find the first layer, forward and then backward, that turns finite values into non-finite ones.

    In the backward pass of a network with branches, it may be a layer of a neighbouring branch.
    """
    with _watch_layers(network, images) as (found, passed):
        logits = network(inputs)
        if found:
            return found[0]
        if _count_bad(logits):
            return "", "the logits are NaN or infinite although the output of every layer is finite"
        loss = loss_of(logits)
        if not loss.isfinite():
            return (
                "",
                f"the loss is {loss.item()} although the output of every layer is finite: the logits are too large",
            )
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
    before = ""
    for name, bad in passed:
        if bad:
            return before, f"gradient through {before or 'the loss'} is NaN or infinite"
        before = name
    return _find_bad("gradient of", _list_gradients(network))


def _find_layer_in_evaluation(network: nn.Module, batches: Iterable[Tensor]) -> Finding:
    """Find the first layer that turns finite values into non-finite ones, in the first batch with such a layer."""
    with _watch_layers(network) as (found, _), torch.no_grad():
        for inputs in batches:
            network(inputs)
            if found:
                return found[0]
    return "", FLEETING


@contextmanager
def _watch_layers(
    network: nn.Module, images: np.ndarray | None = None
) -> Iterator[tuple[list[Finding], list[PassedGradient]]]:
    """Watch the layers without children for non-finite outputs and gradients.

    Args:
        network: The network that runs inside the block.
        images: Index of each image of the batch among the training images, int64 (N,); None to name no images.

    Yields:
        Two lists, filled while the network runs: the first layer with a non-finite output, and the gradients of
        outputs in the order of the backward pass.
    """
    found: list[Finding] = []
    passed: list[PassedGradient] = []

    def inspect(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        if output.requires_grad:
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: passed.append((name, bool(_count_bad(gradient))))
            )
        if not found and _count_bad(output):
            found.append((name, _describe_output(f"{name} ({type(layer).__name__})", inputs, output, images)))

    leaves = {name: layer for name, layer in network.named_modules() if not any(layer.children())}
    with watch_outputs(leaves, inspect):
        yield found, passed


def _describe_output(layer: str, inputs: tuple[Any, ...], output: Tensor, images: np.ndarray | None) -> str:
    """Describe a layer whose output has non-finite values."""
    tensors = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
    if any(map(_count_bad, tensors)):
        return f"the input of {layer} is NaN or infinite, although the output of every layer before it is finite"
    largest = max((tensor.detach().abs().max().item() for tensor in tensors), default=0.0)
    count = _count_bad(output)
    description = (
        f"output of {layer} is NaN or infinite in {count} of {output.numel()} values, of inputs up to {largest:.3g}"
    )
    if images is not None and len(output) == len(images) and bool(output.isfinite().flatten(1).all(1).any()):
        description += f", for {_name_images(output, images)} of the training images"
    return description


def _count_bad(tensor: Tensor) -> int:
    return int((~tensor.detach().isfinite()).sum())


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Check whether all values are finite, by their sum, which is cheap; small tensors are joined before the sum."""
    parts = [
        tensor.sum().reshape(1) if tensor.ndim > 1 else tensor.reshape(-1) for tensor in tensors if tensor is not None
    ]
    return not parts or math.isfinite(torch.cat(parts).sum().item())
