"""When numbers are none: where they begin, why, and back to what was good."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EXPLODED = 10.0  # times the norm that the network's weights had when it was last good
NAMED_IMAGES = 5
FLEETING = "the batch gives numbers when it is run again"

Judge = Callable[[Tensor], Tensor]


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
        """Run a batch again, and say where numbers that are none begin, how large things were, and why probably.

        Args:
            judge: the loss of logits.
            inputs: the batch as the network takes it, float32 (N, C, H, W).
            images: the index of each among the training images, (N,).
        """
        twin = copy.deepcopy(self._network).train()
        culprit = (
            _find_bad("weight", twin.named_parameters())
            or _find_image(inputs, images)
            or _find_layer(twin, judge, inputs)
        )
        layer, what = culprit
        norms = ", ".join(
            f"{name} {tensor.double().norm().item():.3g}"
            + (f" with a gradient of {tensor.grad.double().norm().item():.3g}" if tensor.grad is not None else "")
            for name, tensor in twin.named_parameters()
            if layer and name.rpartition(".")[0] == layer
        )
        return f"{what}{f' (norms: {norms})' if norms else ''}. {self._guess(what)}"

    def explain_weights(self) -> str:
        """The first weight or moving statistic that is no number, if any, and why probably."""
        weight = _find_bad("weight", self._network.named_parameters())
        statistic = _find_bad("statistic", self._network.named_buffers())
        _, what = weight or statistic or ("", "every weight and moving statistic is a number")
        return f"{what}. {self._guess(what)}"

    def _guess(self, what: str) -> str:
        """The likely cause."""
        now = dict(self._network.named_parameters())
        grown = max(_ratio(tensor, self._weights[name]) for name, tensor in now.items())
        if what.startswith("image"):
            return "The data are damaged, not the network"
        if grown > EXPLODED:
            return f"Weights have exploded (the largest is {grown:.3g} times what it was): try a lower --learning-rate"
        if what.startswith("weight"):
            return "The other weights are as large as before: this one was set or loaded so"
        return "Weights are as large as before: look at this layer, and try a lower --learning-rate"


def choose_reason(reasons: list[str]) -> str:
    """Of what several processes found, each in its share of a batch, the first that found something."""
    return next((reason for reason in reasons if not reason.startswith(FLEETING)), reasons[0])


def _ratio(now: Tensor, before: Tensor) -> float:
    """How much larger a tensor is than it was, of its values that are numbers."""
    finite = now.detach()[now.detach().isfinite()]
    if not len(finite):
        return 1.0
    return (finite.abs().max() / before.abs().max().clamp_min(1e-3)).item()


def _find_bad(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """The layer of the first tensor that is no number, and what is said of it."""
    for name, tensor in tensors:
        if count := _count_bad(tensor):
            return name.rpartition(".")[0], f"{kind} {name} is no number in {count} of {tensor.numel()} values"
    return None


def _find_image(inputs: Tensor, images: np.ndarray) -> tuple[str, str] | None:
    bad = images[(~inputs.isfinite()).flatten(1).any(1).cpu().numpy()]
    if not len(bad):
        return None
    named = ", ".join(map(str, bad[:NAMED_IMAGES])) + (", ..." if len(bad) > NAMED_IMAGES else "")
    return "", f"image {named} of the training images holds values that are no numbers"


def _find_layer(network: nn.Module, judge: Judge, inputs: Tensor) -> tuple[str, str]:
    """The first layer, forward and then backward, that makes of numbers what is none."""
    found: list[tuple[str, str]] = []
    passed: list[tuple[str, bool]] = []  # layers in the order in which gradients reach their outputs, and whether bad
    for name, layer in network.named_modules():
        if not any(layer.children()):
            layer.register_forward_hook(partial(_look, found, passed, name))
    loss = judge(network(inputs))
    if found:
        return found[0]
    if not loss.isfinite():
        return "", f"the loss is {loss.item()} although every layer gives numbers: the logits are too large"
    network.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    before = ""
    for name, bad in passed:
        if bad:
            return before, f"gradient through {before or 'the loss'} is no number"
        before = name
    for name, tensor in network.named_parameters():
        if tensor.grad is not None and _count_bad(tensor.grad):
            return name.rpartition(".")[0], f"gradient of {name} is no number"
    return "", FLEETING


def _look(
    found: list[tuple[str, str]], passed: list[tuple[str, bool]], name: str, layer: nn.Module, inputs: Any, output: Any
) -> None:
    """Note a layer that makes of numbers what is none, and what gradient reaches it later."""
    if not isinstance(output, Tensor):
        return
    if output.requires_grad:
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: passed.append((name, bool(_count_bad(gradient))))
        )
    tensors = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
    if not found and (count := _count_bad(output)) and not any(map(_count_bad, tensors)):
        largest = max((tensor.detach().abs().max().item() for tensor in tensors), default=0.0)
        told = f"output of {name} ({type(layer).__name__}) is no number in {count} of {output.numel()} values"
        found.append((name, f"{told}, of inputs up to {largest:.3g}"))


def _count_bad(tensor: Tensor) -> int:
    return int((~tensor.detach().isfinite()).sum())


def are_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all values are numbers: their sum is, and costs least to know."""
    sums = [tensor.detach().sum() for tensor in tensors if tensor is not None]
    return not sums or bool(torch.stack(sums).sum().isfinite())
