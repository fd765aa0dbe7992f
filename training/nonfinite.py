"""Where non-finite values start in a network: the first weight, image, layer or gradient that holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.hooks import watch_outputs

NAMED_IMAGES = 5
FLEETING = "the output of every layer is finite when it is run again"

LossFunction = Callable[[Tensor], Tensor]
Finding = tuple[str, str]  # name of a layer, "" for none, and a description
PassedGradient = tuple[str, bool]  # name of a layer, and whether the gradient of its output has non-finite values


def find_bad(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> Finding | None:
    """Find the first tensor with non-finite values.

    Args:
        kind: What the tensors are, such as "weight".
        tensors: The tensors by name.

    Returns:
        Its layer and a description; None if all values are finite.
    """
    for name, tensor in tensors:
        if count := _count_bad(tensor):
            return name.rpartition(".")[0], f"{kind} {name} is NaN or infinite in {count} of {tensor.numel()} values"
    return None


def find_image(inputs: Tensor, images: np.ndarray) -> Finding | None:
    """Find the images of a batch with non-finite values.

    Args:
        inputs: The batch, float32 (N, C, H, W).
        images: Index of each image among the training images, int64 (N,).

    Returns:
        No layer and a description; None if all values are finite.
    """
    named = _name_images(inputs, images)
    return ("", f"{named} of the training images holds values that are NaN or infinite") if named else None


def _name_images(values: Tensor, images: np.ndarray) -> str:
    """Name the images of a batch whose values are not finite; "" if there are none."""
    bad = images[(~values.isfinite()).flatten(1).any(1).cpu().numpy()]
    named = ", ".join(map(str, bad[:NAMED_IMAGES])) + (", ..." if len(bad) > NAMED_IMAGES else "")
    return f"image {named}" if len(bad) else ""


def list_gradients(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """List the gradients of weights, by the name of the weight."""
    return ((name, learned.grad) for name, learned in network.named_parameters() if learned.grad is not None)


def find_layer(network: nn.Module, loss_of: LossFunction, inputs: Tensor, images: np.ndarray) -> Finding | None:
    """Find the first layer, forward and then backward, that turns finite values into non-finite ones.

    In the backward pass of a network with branches, it may be a layer of a neighbouring branch.

    Args:
        network: The network, in train mode; its gradients change.
        loss_of: Computes the loss from logits.
        inputs: The batch, float32 (N, C, H, W).
        images: Index of each image among the training images, int64 (N,).

    Returns:
        The layer and a description; None if all values are finite.
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
    return find_bad("gradient of", list_gradients(network))


def find_layer_in_evaluation(network: nn.Module, batches: Iterable[Tensor]) -> Finding:
    """Find the first layer that turns finite values into non-finite ones, in the first batch with such a layer.

    Args:
        network: The network, in eval mode.
        batches: The batches, each float32 (N, C, H, W).

    Returns:
        The layer and a description; "" and ``FLEETING`` if all values are finite.
    """
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
