"""Networks by name: ours, and the user's own from a module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.errors import NetworkError
from training.networks import build_network

OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, channels, height, width, classes):
        super().__init__()
        self.size = (channels, height, width)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))
    def forward(self, x):
        return self.layers(x)

def build(channels, height, width, classes):
    return Own(channels, height, width, classes)

def no_module(channels, height, width, classes):
    return "network"

constant = 5
"""


@pytest.fixture
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_own")
def test_a_users_network_is_built_for_the_images_and_labels() -> None:
    network = build_network("own_networks:build", (6, 5, 3), 4, 1.0, 0.0)
    assert network.size == (3, 6, 5)
    assert network(torch.zeros(2, 3, 6, 5)).shape == (2, 4)
    assert network.training


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_networks:missing", "own_networks:missing cannot be imported: .*no attribute 'missing'"),
        ("no_such_module:build", "no_such_module:build cannot be imported: No module named 'no_such_module'"),
        (":build", ":build cannot be imported"),
        ("own_networks:constant", "own_networks:constant is a int, not a function"),
        ("own_networks:no_module", "own_networks:no_module returned a str, not a torch.nn.Module"),
    ],
)
def test_a_users_network_that_cannot_be_used_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build_network(name, (6, 5, 3), 4, 1.0, 0.0)
