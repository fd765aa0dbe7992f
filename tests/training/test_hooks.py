"""Layers are watched only while a network runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.hooks import watch_inputs, watch_outputs


class Named(nn.Module):
    """Passes the input of its layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(input=x)
        return output


def list_hooks(network: nn.Module) -> list[object]:
    return [
        hook
        for module in network.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


@pytest.mark.parametrize("build", [nn.Sequential, Named])
def test_inputs_are_watched_by_position_and_by_keyword(build: Any) -> None:
    network = nn.Sequential(nn.Identity()) if build is nn.Sequential else Named()
    layers = {name: layer for name, layer in network.named_modules() if name}
    seen: list[tuple[str, float]] = []
    with watch_inputs(layers, lambda name, layer, x: seen.append((name, x.item()))):
        network(torch.tensor(3.0))
    assert seen == [(next(iter(layers)), 3.0)]
    assert list_hooks(network) == []


def test_outputs_are_watched_in_the_order_in_which_layers_finish() -> None:
    network = nn.Sequential(nn.Identity(), nn.Flatten(0))
    seen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def see(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.append((name, inputs[0].shape, output.shape))

    with watch_outputs(dict(network.named_modules()), see):
        network(torch.zeros(2, 3))
    assert seen == [("0", (2, 3), (2, 3)), ("1", (2, 3), (6,)), ("", (2, 3), (6,))]
    assert list_hooks(network) == []


@pytest.mark.parametrize("watch", [watch_inputs, watch_outputs])
def test_hooks_are_removed_after_an_error(watch: Any) -> None:
    def fail(*_: object) -> None:
        raise LookupError

    network = nn.Sequential(nn.Identity())
    with pytest.raises(LookupError), watch({"0": network[0]}, fail):
        network(torch.zeros(1))
    assert list_hooks(network) == []
