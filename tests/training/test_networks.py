"""Networks by name: those of evalmode, and the user's own from a module."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from training.errors import NetworkError
from training.networks import NETWORKS, build_network, get_architecture, recognise_architecture
from training.networks.own import OWN as OWN_ARCHITECTURE

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

def not_a_module(channels, height, width, classes):
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
        ("own_networks:not_a_module", "own_networks:not_a_module returned a str, not a torch.nn.Module"),
    ],
)
def test_a_users_network_that_cannot_be_used_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build_network(name, (6, 5, 3), 4, 1.0, 0.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_built_network_is_recognised_as_its_architecture(name: str) -> None:
    assert recognise_architecture(build_network(name, (8, 8, 1), 3, 1.0, 0.0)) is get_architecture(name)


@pytest.mark.usefixtures("_own")
def test_a_users_network_has_an_architecture_that_is_found_without_importing_it() -> None:
    assert get_architecture("not.installed:build") is OWN_ARCHITECTURE
    assert recognise_architecture(build_network("own_networks:build", (6, 5, 3), 4, 1.0, 0.0)) is OWN_ARCHITECTURE


def test_an_unknown_name_is_refused_with_the_known_names() -> None:
    with pytest.raises(NetworkError, match=r"no network 'resnet': choose compact, reference, .*timm:NAME, or your own"):
        get_architecture("resnet")


def test_preparing_changes_only_the_weights_that_are_not_learned() -> None:
    network = build_network("compact", (8, 8, 1), 3, 1.0, 0.0)
    before = {name: weights.clone() for name, weights in network.named_parameters()}
    get_architecture("compact").prepare(network, np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8))
    changed = {name for name, weights in network.named_parameters() if not torch.equal(weights, before[name])}
    assert changed == {name for name, weights in network.named_parameters() if not weights.requires_grad}


IMPORTS = {  # where the code of a user imports torchvision
    "at its top": "import torchvision\n\ndef build(*given): pass\n",
    "in the function": "def build(*given):\n    from torchvision import models\n",
    "by way of another package": "import timm\n\ndef build(*given): pass\n",
}
FAILURES = {  # errors of a package that was built for another torch, or lacks a library
    "raise RuntimeError('operator torchvision::nms does not exist')": "RuntimeError: operator torchvision::nms",
    "raise OSError('libcudart.so.12: cannot open shared object file: No such file')": "OSError: libcudart.so.12: ",
    "raise ImportError('_C.so: undefined symbol: _ZN3c10\\nand more')": "ImportError: _C.so: undefined symbol: _ZN3c10",
    "raise AttributeError('partially initialized module')": "AttributeError: partially initialized module",
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("where", IMPORTS)
def test_a_torchvision_that_cannot_be_imported_is_one_line(
    where: str, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("from torchvision import _meta\n")
    (tmp_path / "torchvision/_meta.py").write_text(failure)
    (tmp_path / "timm.py").write_text("import torchvision\n")
    (tmp_path / "with_torchvision.py").write_text(IMPORTS[where])
    monkeypatch.syspath_prepend(tmp_path)
    with patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
        with pytest.raises(NetworkError) as refused:
            build_network("with_torchvision:build", (8, 8, 1), 10, 1.0, 0.0)
    message = str(refused.value)
    assert message.startswith("--network with_torchvision:build ")
    assert f"the Python package 'torchvision' cannot be imported: {FAILURES[failure]}" in message
    assert f"was it built for another torch than {torch.__version__}? Install the release that fits" in message
    assert "\n" not in message


def test_a_users_own_module_that_fails_is_no_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("")
    (tmp_path / "mine/layers.py").write_text("raise OSError('no weights')")
    (tmp_path / "mine/net.py").write_text("from mine import layers")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NetworkError, match=r"imported: OSError: no weights \(layers\.py, line 1\)$"):
        build_network("mine.net:build", (8, 8, 1), 10, 1.0, 0.0)
