"""A network whose code changes, fails or is removed after the training: one line at export, report and resume."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from evalmode.errors import EvalmodeError
from training.callbacks import SILENT, Callbacks
from training.datasets import Dataset, Split
from training.errors import NetworkError, RunError
from training.export import export_run
from training.fit import write_run_report
from training.loop import train
from training.networks import explain_errors
from training.run import Run

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, channels, height, width, classes):
        super().__init__()
        self.filters = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dense = nn.Linear(4, classes)
        self.calls = 0

    def forward(self, x):
        logits = self.dense(self.norm(self.filters(x)).mean((2, 3)))
        return logits


def build(channels, height, width, classes):
    return Net(channels, height, width, classes)
"""
FORWARD = "        return logits\n"
# A change of the code, and the message.
CHANGES: dict[str, tuple[Callable[[str], str], str]] = {
    "raises when it is imported": (
        lambda code: code + "\n\nraise LookupError('no licence')\n",
        r"changing:build cannot be imported: LookupError: no licence \(changing\.py, line \d+\)",
    ),
    "exits when it is imported": (lambda code: "raise SystemExit(3)", r"cannot be imported: it called sys\.exit\(3\)"),
    "is no Python": (lambda code: "def", "cannot be imported: SyntaxError: invalid syntax"),
    "lacks the function": (lambda code: code.replace("def build(", "def make("), "has no attribute 'build'"),
    "raises when it builds": (
        lambda code: code.replace("return Net(", "return nets("),
        "fails when it builds the network: NameError: name 'nets' is not defined",
    ),
    "has more filters": (
        lambda code: code.replace("4", "5"),
        r"best\.safetensors cannot be loaded: it is of another network: dense\.weight \(10, \d\) is only in the .*",
    ),
    "has another layer": (
        lambda code: code.replace("self.calls = 0", "self.more = nn.Linear(2, 2)"),
        r"it is of another network: more\.bias \(2,\) is only in the present network\. Use the code",
    ),
    "fails in eval mode": (
        lambda code: code.replace(FORWARD, "        assert self.training, 'only for training'\n" + FORWARD),
        r"fails in eval mode on images of shape \(2, 1, 8, 8\): AssertionError: only for training \(changing\.py, line",
    ),
    "returns more than logits": (
        lambda code: code.replace(FORWARD, "        return logits, x\n"),
        r"changing:build returns tuple for images of shape \(2, 1, 8, 8\), not float32 \(2, 10\)",
    ),
    "fails on other values": (
        lambda code: code.replace(FORWARD, "        if x.abs().sum() > 1000: raise KeyError('bright')\n" + FORWARD),
        r"changing:build fails .*: KeyError: 'bright' \(changing\.py, line \d+\)",
    ),
    "exits in the middle": (
        lambda code: code.replace(FORWARD, "        if len(x) > 2: raise SystemExit(0)\n" + FORWARD),
        r"changing:build fails .*: it called sys\.exit\(0\)",
    ),
    "refuses its weights": (
        lambda code: code.replace(
            "    def forward",
            "    def load_state_dict(self, state):\n        raise OSError('no disk')\n\n    def forward",
        ),
        r"changing:build fails when it loads its weights: OSError: no disk \(changing\.py, line \d+\)",
    ),
}
Change = Callable[[str], None]


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Write the module anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(code: str) -> None:
        sys.modules.pop("changing", None)
        (tmp_path / "changing.py").write_text(code)

    return write


@pytest.fixture
def trained(change: Change, start_run: Callable[..., tuple[Run, nn.Module]], few: Split, digits: Dataset) -> Run:
    change(SOURCE)
    run, network = start_run(network="changing:build", epochs=1)
    train(run, network, few, digits.val)
    return run


def small(digits: Dataset, few: Split) -> Dataset:
    return Dataset(digits.source, digits.labels, few, few, few)


def write_report(run: Run, dataset: Dataset) -> Path:
    return write_run_report(run, dataset, SILENT)


@pytest.mark.parametrize("what", CHANGES)
def test_code_that_changed_is_one_line_at_export_and_report(
    what: str, trained: Run, change: Change, digits: Dataset, few: Split
) -> None:
    alter, message = CHANGES[what]
    assert alter(SOURCE) != SOURCE
    change(alter(SOURCE))
    for use in (export_run, write_report):
        with pytest.raises((NetworkError, RunError), match=message) as refused:
            use(trained, small(digits, few))
        assert "\n" not in str(refused.value)
        assert refused.value.exit_code == 2
        sys.modules.pop("changing", None)


def test_code_that_was_removed_is_one_line(trained: Run, tmp_path: Path, digits: Dataset, few: Split) -> None:
    (tmp_path / "changing.py").unlink()
    sys.modules.pop("changing", None)
    for use in (export_run, write_report):
        with pytest.raises(NetworkError, match=r"No module named 'changing': install it, .* in the working directory"):
            use(trained, small(digits, few))


def test_code_that_cannot_be_exported_any_more_is_one_line(
    trained: Run, change: Change, digits: Dataset, few: Split
) -> None:
    change(SOURCE.replace(FORWARD, "        return logits if x.sum() > 0 else logits + 0\n"))
    with pytest.raises(NetworkError, match=r"its code branches on the values of a tensor \(changing\.py, line \d+\)"):
        export_run(trained, small(digits, few))


def test_code_that_holds_to_float32_is_exported(trained: Run, change: Change, digits: Dataset, few: Split) -> None:
    change(SOURCE.replace(FORWARD, "        assert x.dtype == torch.float32\n" + FORWARD))
    assert export_run(trained, small(digits, few)).artifact


def test_a_training_whose_other_weights_are_frozen_now_is_not_resumed(
    start_run: Callable[..., tuple[Run, nn.Module]], change: Change, digits: Dataset, few: Split
) -> None:
    change(SOURCE)
    run, network = start_run(network="changing:build", epochs=2)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, network, few, digits.val, Callbacks(on_epoch=stop))
    change(SOURCE.replace("self.calls = 0", "self.filters.weight.requires_grad = False"))
    files = {path: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(NetworkError, match=r"checkpoint-1\.safetensors cannot be loaded: other weights were trained"):
        train(run, run.config.build_network(), few, digits.val)
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == files


def test_only_errors_of_a_users_network_are_explained(change: Change) -> None:
    """Errors of evalmode and of its own networks keep their type."""
    change("def fail(error):\n    raise error\n")
    from changing import fail  # type: ignore[import-not-found]

    for error in (KeyError("x"), OSError("x"), SystemExit(0)):
        with pytest.raises(NetworkError, match=r"^--network a:b fails at export: "), explain_errors("a:b", "at export"):
            fail(error)
        with pytest.raises(type(error)), explain_errors("compact", "at export"):
            fail(error)
    for passing in (EvalmodeError("x"), MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(passing)), explain_errors("a:b", "at export"):
            fail(passing)
    with pytest.raises(NetworkError, match="RuntimeError: mat1 and mat2"), explain_errors("a:b", "at export"):
        nn.Linear(2, 2)(torch.ones(1, 3))


def test_a_place_that_cannot_be_written_is_no_fault_of_the_network(trained: Run, digits: Dataset, few: Split) -> None:
    (trained.folder / "report.html.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(trained, small(digits, few))


def test_a_run_that_was_stopped_is_reported_from_its_first_epoch_on(trained: Run, digits: Dataset, few: Split) -> None:
    assert "best_epoch" not in (trained.folder / "metrics.jsonl").read_text()
    assert write_report(trained, small(digits, few)).stat().st_size
    trained.metrics.keep(0)
    with pytest.raises(RunError, match=r"no epoch of .*/run is complete, so there is nothing to report: .* --resume"):
        write_report(trained, small(digits, few))
    for damage in ("{", "3\n"):
        (trained.folder / "metrics.jsonl").write_text(damage)
        with pytest.raises(RunError, match=r"metrics\.jsonl cannot be read"):
            write_report(trained, small(digits, few))
