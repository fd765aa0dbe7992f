"""Trainings in several processes, started by torchrun or as it does: their number does not change the result."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.forked_commands import Forks
from tests.training.states import State, equal
from tests.training.tiny_backbone import NAME, make_dataset, make_network, save_dataset
from training.callbacks import SILENT
from training.datasets import Dataset, Split
from training.feature_cache import FeatureCache
from training.ranks import ALONE, Ranks
from training.run import EXACT, Run
from training.statistics import recompute_statistics

JOB = Path(__file__).with_name("ranks_job.py")
ROOT = JOB.parents[2]
ADAM: dict[str, Any] = {"batch_size": 40, "optimizer": "adam", "learning_rate": 1e-2, "dropout": 0.0}
LINEAR: dict[str, Any] = {**ADAM, "network": "__main__:linear", "epochs": 3, "mirror": True, "shift": 1}
COMPACT: dict[str, Any] = {
    **{"network": "compact", "epochs": 3, "batch_size": 40, "optimizer": "muon", "learning_rate": 0.1},
    **{"label_smoothing": 0.1, "dropout": 0.2, "mirror": True, "shift": 1},
}

BALANCED: dict[str, Any] = {"balance": True, "label_smoothing": 0.1}


States = list[State]
TrainIn = Callable[..., States]
Evalmode = Callable[..., subprocess.CompletedProcess[str]]


def torchrun(count: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture
def train_in(tmp_path: Path, forks: Forks) -> TrainIn:
    """Train in several processes and return the final state of each: ``train_in(2, RECIPE, "name")``."""

    def start(count: int, recipe: dict[str, Any], name: str = "run", stop_after: int | None = None) -> States:
        folder = tmp_path / name
        rest = [stop_after] if stop_after else []
        finished = forks.run_ranks(count, JOB, folder, json.dumps(recipe), *rest)
        assert finished.returncode == 0, finished.stderr
        threads = [int((folder / f"threads-{number}.txt").read_text()) for number in range(count)]
        assert threads == [0] * count  # a thread that outlives Python can abort the process
        return [load(folder, f"ended-{number}") for number in range(count)]

    return start


def load(folder: Path, name: str) -> State:
    return dict(safetensors.torch.load_file(folder / f"{name}.safetensors"))


def load_figures(folder: Path) -> list[list[float]]:
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[1:]]
    return [[epoch[name] for name in ("loss", "train_accuracy", "val_accuracy", "val_loss")] for epoch in epochs]


def test_each_image_is_assigned_to_one_process() -> None:
    split = Split(np.zeros((7, 1, 1, 1), np.uint8), np.arange(7))
    assigned = [Ranks(number, 3).take_share(split).targets.tolist() for number in range(3)]
    assert assigned == [[0, 3, 6], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("count", "choice"),
    [
        pytest.param(2, {}, id="2-plain"),
        pytest.param(3, BALANCED, id="3-balanced", marks=pytest.mark.slow),
        pytest.param(2, BALANCED, id="2-balanced", marks=pytest.mark.slow),
        pytest.param(3, {}, id="3-plain", marks=pytest.mark.slow),
    ],
)
def test_the_number_of_processes_changes_neither_weights_nor_metrics(
    train_in: TrainIn, tmp_path: Path, count: int, choice: dict[str, Any]
) -> None:
    [alone] = train_in(1, {**LINEAR, **choice}, "alone")
    together = train_in(count, {**LINEAR, **choice}, "together")
    assert all(equal(together[0], one) for one in together)
    for name, weights in alone.items():
        torch.testing.assert_close(together[0][name], weights, rtol=1e-4, atol=1e-5)
    figures = load_figures(tmp_path / "alone")
    assert len(figures) == LINEAR["epochs"]
    np.testing.assert_allclose(load_figures(tmp_path / "together"), figures, rtol=1e-4)


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(COMPACT, id="compact"),
        pytest.param({**ADAM, "network": "reference", "epochs": 2}, id="reference", marks=pytest.mark.slow),
    ],
)
def test_all_processes_end_with_the_statistics_that_one_process_computes(
    train_in: TrainIn, tmp_path: Path, digits: Dataset, recipe: dict[str, Any]
) -> None:
    one, other = train_in(2, recipe)
    assert equal(one, other)
    assert equal(load(tmp_path / "run", "moving-0"), load(tmp_path / "run", "moving-1"))
    run = Run.open(tmp_path / "run")
    network = run.config.build_network()
    network.load_state_dict(load(tmp_path / "run", "moving-0"))
    recompute_statistics(network, digits.train)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_stopped_training_in_two_processes_resumes_to_the_same_bits(train_in: TrainIn) -> None:
    uninterrupted = train_in(2, COMPACT, "uninterrupted")
    train_in(2, COMPACT, "stopped", stop_after=2)
    assert equal(train_in(2, COMPACT, "stopped")[1], uninterrupted[1])


@pytest.mark.slow
def test_no_process_gets_a_batch_of_one_image(train_in: TrainIn) -> None:
    train_in(2, {**LINEAR, "network": "__main__:normed", "batch_size": 99})  # batch norm raises ValueError at one


@pytest.mark.parametrize("process", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_nan_in_one_process_stops_all_processes_and_names_its_image(
    train_in: TrainIn, tmp_path: Path, process: int
) -> None:
    image = int(np.random.default_rng([0, 1]).permutation(201)[process])  # the first one assigned to this process
    states = train_in(2, {**COMPACT, "spoil": image})
    errors = [(tmp_path / "run" / f"error-{number}.txt").read_text() for number in (0, 1)]
    assert errors[0] == errors[1]
    assert f"image {image} of the training images holds values that are NaN or infinite" in errors[0]
    assert all(tensor.isfinite().all() for state in states for tensor in state.values())


def test_too_many_processes_are_refused(train_in: TrainIn, tmp_path: Path) -> None:
    train_in(2, {**LINEAR, "batch_size": 3})
    error = (tmp_path / "run" / "error-0.txt").read_text()
    assert "2 processes are too many for batches of 3 images, 143 to validate and 359 to test: at most 1" in error


@pytest.mark.slow  # the container test does so, too
def test_a_user_trains_in_two_processes_and_exports(tmp_path: Path, evalmode: Evalmode) -> None:
    run = tmp_path / "run"
    finished = torchrun(2, "-m", "evalmode", "train", "digits", "--out", run, "--epochs", 3)
    assert finished.returncode == 0, finished.stderr
    assert "on cpu in 2 processes" in finished.stdout
    assert finished.stdout.count("\nbest ") == 1
    assert finished.stderr.count("\n") <= 1, finished.stderr  # no warnings
    assert Run.open(run).has_weights(EXACT)
    assert [json.loads(line).get("epoch") for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        0,
        1,
        2,
        3,
        None,
    ]
    assert (run / "report.html").exists()
    exported = evalmode("export", str(run), "--repository", str(tmp_path / "models"), "--name", "digits")
    assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
def test_two_machines_that_share_no_folder_train_together(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def start(machine: int) -> subprocess.CompletedProcess[str]:
        meet = ("--nnodes", 2, "--node-rank", machine, "--master-addr", "127.0.0.1", "--master-port", port)
        return torchrun(1, *meet, "-m", "evalmode", "train", "digits", "--out", tmp_path / str(machine), "--epochs", 2)

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(start, (0, 1))
    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    assert "on cpu in 2 processes" in first.stdout
    assert Run.open(tmp_path / "0").has_weights(EXACT)
    assert second.stdout == ""
    assert not (tmp_path / "1").exists()


@pytest.mark.slow
def test_processes_with_different_options_do_not_train_together(tmp_path: Path) -> None:
    command = f'exec {sys.executable} -m evalmode train digits --out {tmp_path / "run"} --epochs 3 --seed "$RANK"'
    finished = torchrun(2, "--no-python", "sh", "-c", command)
    assert finished.returncode != 0
    assert "seed 0, process 1 1" in finished.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_equal_statistics_of_several_processes_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.mul_(3))
    norm = torch.nn.BatchNorm1d(1000)
    torch.nn.init.uniform_(before := norm.get_buffer("running_var"))
    before = before.clone()
    Ranks(0, 3).average_buffers(norm)
    assert torch.equal(norm.get_buffer("running_var"), before)


@pytest.mark.slow
def test_a_pretrained_network_is_trained_in_two_processes(tmp_path: Path) -> None:
    options = ("--network", NAME, "--epochs", 2, "--fine-tune", 1, "--no-report", "--device", "cpu")
    folder = tmp_path / "run"
    finished = torchrun(2, "-m", "evalmode", "train", save_dataset(tmp_path), "--out", folder, *options)
    assert finished.returncode == 0, finished.stderr
    network, run = make_network(), Run.open(folder)
    alone = FeatureCache(tmp_path, network, run.config, make_dataset()).load_or_compute(ALONE, SILENT)
    for name, features in load(folder / "features", "features").items():
        torch.testing.assert_close(features.numpy(), vars(alone)[name], rtol=1e-5, atol=1e-5)
    before, after = network.state_dict(), load(folder, EXACT)
    frozen = [name for name in before if name.startswith("stages.") and not name.startswith("stages.2.")]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    result = run.read_result()
    assert [stage["stage"] for stage in result.stages] == ["features", "head", "fine-tune"]
    assert result.cross_validated
    assert [json.loads(line).get("epoch") for line in (folder / "metrics.jsonl").read_text().splitlines()] == [
        *(0, 1, 2),
        None,
    ]
