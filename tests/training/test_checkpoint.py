"""A killed training resumes to the same bits with every optimizer, and skips damaged checkpoints."""

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
Evalmode = Callable[..., subprocess.CompletedProcess[str]]


def ignore(*_: object) -> None:
    pass


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_at(step_to_kill: int) -> Callable[..., None]:
    steps = iter(range(1, 10**6))

    def on_step(*_: object) -> None:
        if next(steps) == step_to_kill:
            raise Killed

    return on_step


def contents(run: Run) -> dict[str, str]:
    """The digests of the run's weights, and its metrics without durations."""
    weights = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.folder.glob("[!c]*.safetensors")
    }
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return {**weights, "metrics": json.dumps([{**line, "seconds": 0} for line in lines])}


def resume(run: Run, few: Split, digits: Dataset) -> list[str]:
    """Resume from the folder alone, as a new process would, and return the warnings."""
    warnings: list[str] = []
    torch.manual_seed(run.config.recipe.seed)
    train(Run.open(run.folder), run.config.build_network(), few, digits.val, Callbacks(on_warning=warnings.append))
    return warnings


@pytest.mark.parametrize("optimizer", RECIPES)
@pytest.mark.parametrize("step", [1, 4, 8, 12])
def test_a_resumed_training_ends_with_the_same_bits(
    start_run, few: Split, digits: Dataset, optimizer: str, step: int
) -> None:
    recipe = {**RECIPES[optimizer], "batch_size": 32}
    uninterrupted, network = start_run("uninterrupted", **recipe)
    train(uninterrupted, network, few, digits.val)
    killed, network = start_run("killed", **recipe)
    with pytest.raises(Killed):
        train(killed, network, few, digits.val, Callbacks(on_step=kill_at(step)))
    resume(killed, few, digits)
    assert contents(killed) == contents(uninterrupted)


def test_a_halved_learning_rate_stays_halved_after_resuming(start_run, few: Split, digits: Dataset) -> None:
    def train_with_a_fault(name: str, on_step: Callable[..., None]) -> Run:
        run, network = start_run(name, **RECIPES["adam"])
        spoiled: list[int] = []

        def spoil(epoch: Epoch) -> None:
            if not spoiled:
                spoiled.append(epoch.epoch)
                with torch.no_grad():
                    next(network.parameters()).fill_(torch.nan)

        with suppress(Killed):
            train(run, network, few, digits.val, Callbacks(on_step=on_step, on_epoch=spoil), Execution(back_off=True))
        return run

    uninterrupted = train_with_a_fault("uninterrupted", ignore)
    killed = train_with_a_fault("killed", kill_at(len(few) // 32 * 2 + 1))  # in the third epoch
    assert list_checkpoints(killed.folder) == [2, 1]
    assert resume(killed, few, digits) == []
    assert contents(killed) == contents(uninterrupted)


def test_only_the_newest_checkpoints_are_kept(start_run, few: Split, digits: Dataset) -> None:
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
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(
    start_run, few: Split, digits: Dataset, spoil
) -> None:
    uninterrupted, network = start_run("uninterrupted", epochs=4)
    train(uninterrupted, network, few, digits.val)
    killed, network = start_run("killed", epochs=4)
    with pytest.raises(Killed):
        train(killed, network, few, digits.val, Callbacks(on_step=kill_at(len(few) // 32 * 3 + 1)))
    newest, _ = list_checkpoints(killed.folder)
    spoil(killed.folder / f"checkpoint-{newest}.safetensors")
    [warning] = resume(killed, few, digits)
    assert f"checkpoint-{newest}.safetensors is damaged: " in warning
    assert warning.endswith("; it is passed over")
    assert contents(killed) == contents(uninterrupted)


def test_a_training_with_only_damaged_checkpoints_starts_again(start_run, few: Split, digits: Dataset) -> None:
    uninterrupted, network = start_run("uninterrupted", epochs=2)
    train(uninterrupted, network, few, digits.val)
    before = contents(uninterrupted)
    for path in uninterrupted.folder.glob("checkpoint-*.json"):
        path.write_text("nothing")
    assert len(resume(uninterrupted, few, digits)) == 2
    assert contents(uninterrupted) == before


def test_a_training_that_starts_again_keeps_its_new_checkpoints(start_run, few: Split, digits: Dataset) -> None:
    run, network = start_run(epochs=4)
    train(run, network, few, digits.val)
    for path in run.folder.glob("checkpoint-*.json"):
        path.write_text("nothing")
    with pytest.raises(Killed):
        train(
            Run.open(run.folder),
            run.config.build_network(),
            few,
            digits.val,
            Callbacks(on_step=kill_at(len(few) // 32 + 1)),
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


def make_command(folder: Path, *options: object) -> list[str]:
    given = ("train", "digits", "--out", folder / "run", "--epochs", 2, "--no-report", *options)
    return list(map(str, given))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, evalmode: Evalmode) -> Path:
    """The folder of a run over one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    done = evalmode(*make_command(folder, "--epochs", 1))
    assert done.returncode == 0, done.stderr
    return folder


class TestCommand:
    @pytest.mark.slow
    def test_resumes_to_the_same_bits_after_being_killed_at_any_moment(
        self, tmp_path: Path, evalmode: Evalmode
    ) -> None:
        assert evalmode(*make_command(tmp_path / "uninterrupted")).returncode == 0
        uninterrupted = contents(Run.open(tmp_path / "uninterrupted" / "run"))
        rng = random.Random(8)
        killed = tmp_path / "killed"
        for _ in range(3):
            command = [sys.executable, "-m", "evalmode", *make_command(killed, "--resume")]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                time.sleep(2 + 4 * rng.random())  # before the first step, in the first epoch, or after it
                process.send_signal(signal.SIGKILL)
        resumed = evalmode(*make_command(killed, "--resume"))
        assert resumed.returncode == 0, resumed.stderr
        assert contents(Run.open(killed / "run")) == uninterrupted

    def test_names_the_options_that_differ(self, finished: Path, evalmode: Evalmode) -> None:
        refused = evalmode(*make_command(finished, "--epochs", 1, "--seed", 5, "--resume"))
        assert refused.returncode == 2
        assert "was started with other options or data: seed 0, now 5" in refused.stderr
        assert "epochs" not in refused.stderr

    def test_refuses_a_folder_that_holds_a_run_without_resume(self, finished: Path, evalmode: Evalmode) -> None:
        refused = evalmode(*make_command(finished, "--epochs", 1))
        assert refused.returncode == 2
        assert "is not empty" in refused.stderr
        assert "--resume" in refused.stderr
