"""A training that died goes on as if it had not: bit for bit, whichever the optimizer, and past damaged checkpoints."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from training.callbacks import Callbacks
from training.checkpoint import KEPT, Epoch, list_checkpoints
from training.datasets import Dataset, Split
from training.errors import NetworkError
from training.loop import Execution, train
from training.run import Run

RECIPES: dict[str, dict[str, Any]] = {
    "muon": {"network": "compact", "epochs": 4, "optimizer": "muon", "learning_rate": 0.1, "shift": 1},
    "adam": {"network": "reference", "epochs": 4, "optimizer": "adam", "learning_rate": 1e-3, "dropout": 0.3},
}


def ignore(*_: object) -> None:
    pass


class Died(BaseException):
    """The process is gone."""


def die_at(step_to_die: int) -> Callable[..., None]:
    steps = iter(range(1, 10**6))

    def on_step(*_: object) -> None:
        if next(steps) == step_to_die:
            raise Died

    return on_step


def contents(run: Run) -> dict[str, str]:
    """What the run holds, but for how long it took."""
    weights = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.folder.glob("[!c]*.safetensors")
    }
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return {**weights, "metrics": json.dumps([{**line, "seconds": 0} for line in lines])}


def go_on(run: Run, few: Split, digits: Dataset) -> list[str]:
    """As a new process would: nothing is left but the folder. Returns what it warns of."""
    told: list[str] = []
    torch.manual_seed(run.config.recipe.seed)
    train(Run.open(run.folder), run.config.build_network(), few, digits.val, Callbacks(on_warning=told.append))
    return told


@pytest.mark.parametrize("optimizer", RECIPES)
@pytest.mark.parametrize("step", [1, 4, 8, 12])
def test_what_died_ends_as_if_it_had_not(start_run, few: Split, digits: Dataset, optimizer: str, step: int) -> None:
    recipe = {**RECIPES[optimizer], "batch_size": 32}
    whole, network = start_run("whole", **recipe)
    train(whole, network, few, digits.val)
    died, network = start_run("died", **recipe)
    with pytest.raises(Died):
        train(died, network, few, digits.val, Callbacks(on_step=die_at(step)))
    go_on(died, few, digits)
    assert contents(died) == contents(whole)


def test_a_rate_that_was_halved_stays_halved(start_run, few: Split, digits: Dataset) -> None:
    def train_with_a_fault(name: str, on_step: Callable[..., None]) -> Run:
        run, network = start_run(name, **RECIPES["adam"])
        spoiled: list[int] = []

        def spoil(epoch: Epoch) -> None:
            if not spoiled:
                spoiled.append(epoch.epoch)
                with torch.no_grad():
                    next(network.parameters()).fill_(torch.nan)

        with suppress(Died):
            train(run, network, few, digits.val, Callbacks(on_step=on_step, on_epoch=spoil), Execution(back_off=True))
        return run

    whole = train_with_a_fault("whole", ignore)
    died = train_with_a_fault("died", die_at(len(few) // 32 * 2 + 1))  # in the third epoch
    assert list_checkpoints(died.folder) == [2, 1]
    assert go_on(died, few, digits) == []
    assert contents(died) == contents(whole)


def test_only_the_newest_are_kept(start_run, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=4)
    train(run, network, few, digits.val)
    assert list_checkpoints(run.folder) == [4, 3]
    assert len(list(run.folder.glob("checkpoint-*"))) == 2 * KEPT


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(path.read_bytes()[:-10] + bytes(10)),
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".json").write_text("{"),
        lambda path: path.with_suffix(".json").write_text('{"sha256": "", "best": {}}'),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_used(start_run, few: Split, digits: Dataset, spoil) -> None:
    whole, network = start_run("whole", epochs=4)
    train(whole, network, few, digits.val)
    died, network = start_run("died", epochs=4)
    with pytest.raises(Died):
        train(died, network, few, digits.val, Callbacks(on_step=die_at(len(few) // 32 * 3 + 1)))
    newest, _ = list_checkpoints(died.folder)
    spoil(died.folder / f"checkpoint-{newest}.safetensors")
    [told] = go_on(died, few, digits)
    assert f"checkpoint-{newest}.safetensors is damaged: " in told
    assert told.endswith("; it is passed over")
    assert contents(died) == contents(whole)


def test_with_all_of_them_damaged_it_starts_anew(start_run, few: Split, digits: Dataset) -> None:
    whole, network = start_run("whole", epochs=2)
    train(whole, network, few, digits.val)
    before = contents(whole)
    for path in whole.folder.glob("checkpoint-*.json"):
        path.write_text("nothing")
    assert len(go_on(whole, few, digits)) == 2
    assert contents(whole) == before


def test_what_starts_anew_keeps_its_new_checkpoints(start_run, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=4)
    train(run, network, few, digits.val)
    for path in run.folder.glob("checkpoint-*.json"):
        path.write_text("nothing")
    with pytest.raises(Died):
        train(
            Run.open(run.folder),
            run.config.build_network(),
            few,
            digits.val,
            Callbacks(on_step=die_at(len(few) // 32 + 1)),
        )
    assert [path.name for path in sorted(run.folder.glob("checkpoint-*"))] == [
        "checkpoint-1.json",
        "checkpoint-1.safetensors",
    ]


def test_a_checkpoint_of_another_network_is_refused(start_run, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=1)
    train(run, network, few, digits.val)
    before, files = contents(run), {path: path.read_bytes() for path in run.folder.iterdir()}
    other = nn.Sequential(network, nn.Linear(10, 10))
    untouched = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        NetworkError,
        match=r"checkpoint-1\.safetensors cannot be loaded: it is of another network: .* Use the code",
    ):
        train(run, other, few, digits.val)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in other.state_dict().items())
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == files
    assert contents(run) == before


class TestCommand:
    def command(self, tmp_path: Path, *options: object) -> list[str]:
        given = ("train", "digits", "--out", tmp_path / "run", "--epochs", 2, "--no-report", *options)
        return [sys.executable, "-m", "evalmode", *map(str, given)]

    def run(self, tmp_path: Path, *options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(tmp_path, *options), capture_output=True, text=True, timeout=300)

    def test_killed_at_any_moment_it_ends_the_same(self, tmp_path: Path) -> None:
        assert self.run(tmp_path / "whole").returncode == 0
        whole = contents(Run.open(tmp_path / "whole" / "run"))
        chance = random.Random(8)
        died = tmp_path / "died"
        for _ in range(3):
            with subprocess.Popen(self.command(died, "--resume"), stdout=subprocess.DEVNULL) as process:
                time.sleep(2 + 4 * chance.random())  # before its first step, in it, or after its first epoch
                process.send_signal(signal.SIGKILL)
        resumed = self.run(died, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert contents(Run.open(died / "run")) == whole

    def test_with_other_options_it_says_which(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, "--epochs", 1).returncode == 0
        refused = self.run(tmp_path, "--epochs", 1, "--seed", 5, "--resume")
        assert refused.returncode == 2
        assert "was started with other options or data: seed 0, now 5" in refused.stderr
        assert "epochs" not in refused.stderr

    def test_without_the_option_a_folder_that_holds_a_run_is_refused(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, "--epochs", 1).returncode == 0
        refused = self.run(tmp_path, "--epochs", 1)
        assert refused.returncode == 2
        assert "is not empty" in refused.stderr
        assert "--resume" in refused.stderr
