"""A user's network is tried before the first epoch; the trial reports faults in one line and changes nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.conftest import StartRun
from tests.training.states import equal, state_of
from training.callbacks import Callbacks
from training.datasets import Dataset, Split
from training.errors import NetworkError
from training.export import export_run
from training.loop import train
from training.networks import build_network
from training.trial import try_network

SHAPE = 8, 8, 1
OWN = "tests.training.own_networks:"


def try_own(name: str, shared: bool = False) -> list[str]:
    """Build and try a network, and return the warnings."""
    warnings: list[str] = []
    network = build_network(OWN + name, SHAPE, 10, 1.0, 0.0)
    try_network(name, network, SHAPE, 10, warnings.append, shared)
    return warnings


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "wrong_signature",
            r"takes \(num_classes: 'int' = 10\).*called as function\(channels, height, width, classes\)",
        ),
        ("missing_import", "No module named 'not_installed_at_all': install it, or check the spelling"),
        ("downloads", "a download failed .* put the weights into .*/checkpoints first"),
        ("fails", r"fails when it builds the network: KeyError: .*\(own_networks\.py, line \d+\)"),
        ("exits", r"fails when it builds the network: it called sys.exit\(3\)"),
        ("no_parameters", "without parameters: there is nothing to learn"),
        ("all_frozen", r"all 186 weights of all_frozen are frozen \(requires_grad is False\)"),
        ("auxiliary", "in train mode returns tuple .* return the logits alone"),
        ("wants_size", r"AssertionError: expected 224, got 8 \(own_networks\.py, line \d+\)"),
        ("fails_in_training", "fails in training on images of shape .*: LookupError: no mask"),
        ("functional_dropout", "different results for the same images the second time, in eval mode: .*use nn.Dropout"),
        ("draws", "in eval mode: it draws random numbers"),
        ("detached", r"no gradient reaches stem\.weight, stem\.bias, norm\.weight, \.\.\. of detached"),
        (
            "untracked",
            r"for an image alone and in a batch, in eval mode: norm keeps no moving statistics \(track_running_stats",
        ),
        (
            "mixes",
            "gives different results for an image alone and in a batch, in eval mode: it mixes the images of a batch",
        ),
        ("branches", r"branches on the values of a tensor \(own_networks\.py, line \d+\)"),
        ("adaptive_max", r"ONNX has no counterpart of its operator aten\.adaptive_max_pool2d; replace the layer"),
        ("stuck", "not in eval mode: the network itself, stem, .* Does the module prevent eval"),
        ("scripted", "is a torch.jit script, which cannot be exported"),
        ("instance_norm", r"ONNX has no counterpart of norm \(InstanceNorm2d\) with moving statistics; set track"),
        ("grows", "other weights or buffers after a step than before it: seen; register them in __init__"),
        ("no_image_network", r"fails in training on images of shape \(4, 1, 8, 8\): RuntimeError: mat1 and mat2"),
        ("one_label_more", r"returns torch.float32 \(4, 11\) .* not float32 \(4, 10\)"),
        ("doubles", r"returns torch.float64 \(4, 10\) .* not float32 \(4, 10\)"),
        ("extra_state", "the weights of extra_state cannot be saved: "),
    ],
)
def test_a_network_that_cannot_be_trained_or_exported_is_refused_in_one_line(
    name: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NetworkError, match=message) as refused:
        try_own(name)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
    printed = capfd.readouterr()  # the exporter prints graphs, and torch.hub what it downloads
    assert printed == ("", "") or name == "downloads"


def test_probabilities_in_place_of_logits_are_warned_about() -> None:
    [warning] = try_own("ends_in_softmax")
    assert "returns probabilities (a softmax at its end?)" in warning
    assert try_own("plain") == []


def test_several_processes_need_a_gradient_for_every_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(OWN + "plain", SHAPE, 10, 1.0, 0.0)
    network.register_module("idle", nn.Linear(2, 2))
    try_network("idle", network, SHAPE, 10, print)
    with pytest.raises(NetworkError, match=r"no gradient reaches idle\.weight, idle\.bias of .*Several processes"):
        try_network("idle", network, SHAPE, 10, print, shared=True)


def random_states() -> tuple[object, ...]:
    """The states of the three generators. NumPy's has a position, too: most draws move it and nothing else."""
    numpy_state = np.random.get_state(legacy=False)["state"]
    return random.getstate(), numpy_state["key"].tolist(), numpy_state["pos"], torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", ["keeps_activations", "old_weight_norm", "spectral_norm"])
def test_a_trial_changes_nothing(name: str) -> None:
    network: Any = build_network(OWN + name, SHAPE, 10, 1.0, 0.0)
    network.dense.weight.grad = torch.ones_like(network.dense.weight)
    network.norm.eval()
    before, modes = state_of(network), [module.training for module in network.modules()]
    attributes = {key: value for key, value in vars(network).items() if not key.startswith("_")}
    draws = random_states()
    try_network(name, network, SHAPE, 10, print)
    assert equal(state_of(network), before)
    assert [module.training for module in network.modules()] == modes
    assert {key: value for key, value in vars(network).items() if not key.startswith("_")} == attributes
    assert random_states() == draws
    assert torch.equal(network.dense.weight.grad, torch.ones_like(network.dense.weight))
    assert all(weights.grad is None for weights in network.stem.parameters())
    assert not any(module._forward_pre_hooks for module in network.norm.modules())


def test_random_states_are_restored_after_a_refusal(tmp_path: Path) -> None:
    network = build_network(OWN + "draws", SHAPE, 10, 1.0, 0.0)
    draws = random_states()
    with pytest.raises(NetworkError):
        try_network("draws", network, SHAPE, 10, print)
    assert random_states() == draws


@pytest.mark.parametrize(
    "name",
    [
        *("weight_norm", "spectral_norm", "old_weight_norm", "shared_modules", "shared_buffers", "keeps_activations"),
        *("train_returns_nothing", "frozen", "large_logits", "small_logits"),
        *("mean_only", "mean_only_batch_norm", "volume", "instance_norm_untracked"),
    ],
)
def test_a_network_that_passes_the_trial_trains_resumes_and_exports(
    name: str, start_run: StartRun, few: Split, digits: Dataset
) -> None:
    try_own(name)
    run, network = start_run(network=OWN + name, epochs=2)
    train(run, network, few, digits.val)
    again, other = start_run("again", network=OWN + name, epochs=2)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(again, other, few, digits.val, Callbacks(on_epoch=stop))
    train(again, again.config.build_network(), few, digits.val)
    for which in ("best", "initial"):
        assert again.read_weights(which).keys() == run.read_weights(which).keys()
        assert equal(again.read_weights(which), run.read_weights(which))
    agreement = export_run(run, Dataset(digits.source, digits.labels, few, digits.val, digits.test)).agreement
    assert agreement.max_logit_difference <= agreement.tolerance
