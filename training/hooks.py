"""Watch the layers of a network while it runs; the hooks are removed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

OnInput = Callable[[str, nn.Module, Tensor], None]
OnOutput = Callable[[str, nn.Module, tuple[Any, ...], Any], None]


@contextmanager
def watch_inputs(layers: Mapping[str, nn.Module], on_input: OnInput) -> Iterator[None]:
    """Call a function with the first argument of each layer before the layer runs.

    Args:
        layers: The layers to watch, by name.
        on_input: Called with the name, the layer and its first argument, which may be passed by position or by
            keyword. An exception that it raises ends the forward pass.
    """

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            on_input(name, layer, arguments[0] if arguments else next(iter(keywords.values())))

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch_outputs(layers: Mapping[str, nn.Module], on_output: OnOutput) -> Iterator[None]:
    """Call a function with the output of each layer after the layer has run.

    Args:
        layers: The layers to watch, by name.
        on_output: Called with the name, the layer, its positional arguments and what it returned.
    """

    def watch(name: str, layer: nn.Module) -> Any:
        return layer.register_forward_hook(lambda _, arguments, output: on_output(name, layer, arguments, output))

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
