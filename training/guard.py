"""When values are NaN or infinite: where they begin, why, and back to what was good."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EXPLODED = 10.0  # times the norm that the network's weights had when it was last good
NAMED_IMAGES = 5
FLEETING = "the output of every layer is finite when it is run again"
UNCOPIED = "where is not known, since this network cannot be copied to look at it"

Judge = Callable[[Tensor], Tensor]
Culprit = tuple[str, str]  # a layer, if any, and what is said of it
Passed = tuple[str, bool]  # a layer, and whether the gradient that reached it is bad


class Guard:
    """Remembers a network and its optimizers as they were when they were last good.

    Args:
        network: that is trained.
        optimizers: that train it.
    """

    def __init__(self, network: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        self._network = network
        self._optimizers = optimizers
        self.mark()

    def mark(self) -> None:
        """What is now is good."""
        self._weights = {name: tensor.clone() for name, tensor in self._network.state_dict().items()}
        self._memories = copy.deepcopy([optimizer.state_dict() for optimizer in self._optimizers])

    def restore(self) -> None:
        """Go back to what was good: weights, batch norm's statistics, what the optimizers remember."""
        self._network.load_state_dict(self._weights)
        for optimizer, memory in zip(self._optimizers, copy.deepcopy(self._memories), strict=True):
            optimizer.load_state_dict(memory)

    def back_off(self) -> float:
        """Go back to what was good, with half the learning rates; the first of them, at its peak."""
        for memory in self._memories:
            for group in memory["param_groups"]:
                group["peak_lr"] /= 2
        self.restore()
        return float(self._memories[0]["param_groups"][0]["peak_lr"])

    def explain(self, judge: Judge, inputs: Tensor, images: np.ndarray) -> str:
        """Run a batch again, and say where NaN or infinity begins, how large things were, and why probably.

        Args:
            judge: the loss of logits.
            inputs: the batch as the network takes it, float32 (N, C, H, W).
            images: the index of each among the training images, (N,).
        """
        if not (twin := _copy(self._network)):
            return f"{UNCOPIED}. {self._guess('', UNCOPIED)}"
        twin.train()
        layer, what = (
            _find_bad("weight", twin.named_parameters())
            or _find_image(inputs, images)
            or _find_layer(twin, judge, inputs, images)
            or self._find_fleeting()
        )
        norms = ", ".join(
            f"{name} {tensor.double().norm().item():.3g}"
            + (f" with a gradient of {tensor.grad.double().norm().item():.3g}" if tensor.grad is not None else "")
            for name, tensor in twin.named_parameters()
            if layer and name.rpartition(".")[0] == layer
        )
        return f"{what}{f' (norms: {norms})' if norms else ''}. {self._guess(layer, what)}"

    def _find_fleeting(self) -> Culprit:
        layer, what = _find_bad("gradient of", _list_gradients(self._network)) or ("", "")
        return layer, FLEETING + (f", yet the {what}" if what else "")

    def explain_evaluation(self, batches: Iterable[Tensor]) -> str:
        """Say where in eval mode NaN or infinity begins, and why probably.

        Args:
            batches: all that is evaluated, each as the network takes it, float32 (N, C, H, W).
        """
        if not (twin := _copy(self._network)):
            return f"{UNCOPIED}. {self._guess('', UNCOPIED)}"
        twin.eval()
        layer, what = (
            _find_bad("weight", twin.named_parameters())
            or _find_bad("statistic", twin.named_buffers())
            or _find_layer_in_evaluation(twin, batches)
        )
        return f"{what}. {self._guess(layer, what)}"

    def _guess(self, layer: str, what: str) -> str:
        """The likely cause."""
        names = [name for name, _ in self._network.named_parameters()]
        before = _measure_norm(self._weights[name] for name in names)
        grown = _measure_norm(self._network.parameters()) / max(before, 1e-3)
        if what.startswith("image"):
            return "The data are damaged, not the network"
        if grown > EXPLODED:
            return f"Weights have exploded (their norm is {grown:.3g} times what it was): try a lower --learning-rate"
        if what.startswith("weight"):
            return "The other weights are as large as before: this one was set or loaded so"
        return (
            f"Weights are as large as before: {'look at this layer, and ' if layer else ''}try a lower --learning-rate"
        )


def choose_reason(reasons: list[str]) -> str:
    """Of what several processes found, each in its share of a batch, the first that found something."""
    return next((reason for reason in reasons if not reason.startswith(FLEETING)), reasons[0])


def _copy(network: nn.Module) -> nn.Module | None:
    """A copy to run with hooks; None of a network that cannot be copied, such as one that keeps its activations."""
    try:
        return copy.deepcopy(network)
    except (RuntimeError, TypeError):
        return None


def _measure_norm(tensors: Iterable[Tensor]) -> float:
    """The norm of all values that are finite."""
    every = (tensor.detach().double().nan_to_num(0, 0, 0) for tensor in tensors)
    return math.sqrt(sum(tensor.square().sum().item() for tensor in every))


def _find_bad(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> Culprit | None:
    """The layer of the first tensor with NaN or infinity in it, and what is said of it."""
    for name, tensor in tensors:
        if count := _count_bad(tensor):
            return name.rpartition(".")[0], f"{kind} {name} is NaN or infinite in {count} of {tensor.numel()} values"
    return None


def _find_image(inputs: Tensor, images: np.ndarray) -> Culprit | None:
    named = _name_images(inputs, images)
    return ("", f"{named} of the training images holds values that are NaN or infinite") if named else None


def _name_images(values: Tensor, images: np.ndarray) -> str:
    """Of which images a batch's values are NaN or infinite, if any."""
    bad = images[(~values.isfinite()).flatten(1).any(1).cpu().numpy()]
    named = ", ".join(map(str, bad[:NAMED_IMAGES])) + (", ..." if len(bad) > NAMED_IMAGES else "")
    return f"image {named}" if len(bad) else ""


def _list_gradients(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, learned.grad) for name, learned in network.named_parameters() if learned.grad is not None)


def _find_layer(network: nn.Module, judge: Judge, inputs: Tensor, images: np.ndarray) -> Culprit | None:
    """The first layer, forward and then backward, that makes NaN or infinity of finite values.

    Backward, of a network that branches, it may be the layer beside.
    """
    found, passed = _look_at_layers(network, images)
    logits = network(inputs)
    if found:
        return found[0]
    if _count_bad(logits):
        return "", "the logits are NaN or infinite although the output of every layer is finite"
    loss = judge(logits)
    if not loss.isfinite():
        return "", f"the loss is {loss.item()} although the output of every layer is finite: the logits are too large"
    network.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    before = ""
    for name, bad in passed:
        if bad:
            return before, f"gradient through {before or 'the loss'} is NaN or infinite"
        before = name
    return _find_bad("gradient of", _list_gradients(network))


def _find_layer_in_evaluation(network: nn.Module, batches: Iterable[Tensor]) -> Culprit:
    """The first layer that makes NaN or infinity of finite values, in the first batch in which one does."""
    found, _ = _look_at_layers(network)
    with torch.no_grad():
        for inputs in batches:
            network(inputs)
            if found:
                return found[0]
    return "", FLEETING


def _look_at_layers(network: nn.Module, images: np.ndarray | None = None) -> tuple[list[Culprit], list[Passed]]:
    """Have each layer noted that gives NaN or infinity, in the order of calls, and what gradients reach layers later.

    Returns:
        Two lists that fill when the network runs: the first layer that was found, and whether the gradient that
        reached a layer's output is bad, in the order in which gradients do.
    """
    found: list[Culprit] = []
    passed: list[Passed] = []

    def look(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        if output.requires_grad:
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: passed.append((name, bool(_count_bad(gradient))))
            )
        if not found and _count_bad(output):
            found.append((name, _describe(name, layer, inputs, output, images)))

    for name, layer in network.named_modules():
        if not any(layer.children()):
            layer.register_forward_hook(partial(look, name))
    return found, passed


def _describe(name: str, layer: nn.Module, inputs: Any, output: Tensor, images: np.ndarray | None) -> str:
    """What is said of a layer whose output is NaN or infinite."""
    tensors = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
    kind = type(layer).__name__
    if any(map(_count_bad, tensors)):
        return f"what {name} ({kind}) is given is NaN or infinite, though the output of every layer before is finite"
    largest = max((tensor.detach().abs().max().item() for tensor in tensors), default=0.0)
    count = _count_bad(output)
    told = (
        f"output of {name} ({kind}) is NaN or infinite in {count} of {output.numel()} values, "
        f"of inputs up to {largest:.3g}"
    )
    if images is not None and len(output) == len(images) and bool(output.isfinite().flatten(1).all(1).any()):
        told += f", for {_name_images(output, images)} of the training images"
    return told


def _count_bad(tensor: Tensor) -> int:
    return int((~tensor.detach().isfinite()).sum())


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all values are finite: their sum is, and costs least to know; the many small ones are joined first."""
    parts = [
        tensor.sum().reshape(1) if tensor.ndim > 1 else tensor.reshape(-1) for tensor in tensors if tensor is not None
    ]
    return not parts or math.isfinite(torch.cat(parts).sum().item())
