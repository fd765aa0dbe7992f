"""Watch the layers of a network while it runs; the hooks are removed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

OnInput = Callable[[str, nn.Module, Tensor], None]
OnOutput = Callable[[str, nn.Module, tuple[Any, ...], Any], None]


def watch_inputs(layers: Mapping[str, nn.Module], on_input: OnInput) -> AbstractContextManager[None]:
    """Call a function with the first argument of each layer before the layer runs.

    Args:
        layers: The layers to watch, by name.
        on_input: Called with the name, the layer and its first argument, which may be passed by position or by
            keyword. An exception that it raises ends the forward pass.
    """

    def watch(name: str, layer: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            on_input(name, layer, arguments[0] if arguments else next(iter(keywords.values())))

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    return _registered(layers, watch)


def watch_outputs(layers: Mapping[str, nn.Module], on_output: OnOutput) -> AbstractContextManager[None]:
    """Call a function with the output of each layer after the layer has run.

    Args:
        layers: The layers to watch, by name.
        on_output: Called with the name, the layer, its positional arguments and what it returned.
    """

    def watch(name: str, layer: nn.Module) -> RemovableHandle:
        return layer.register_forward_hook(lambda _, arguments, output: on_output(name, layer, arguments, output))

    return _registered(layers, watch)


@contextmanager
def _registered(
    layers: Mapping[str, nn.Module], register: Callable[[str, nn.Module], RemovableHandle]
) -> Iterator[None]:
    """Register a hook on each layer, and remove the hooks at the end."""
    handles = [register(name, layer) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
