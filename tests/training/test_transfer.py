"""A pretrained network is trained in stages: the same bits each time, and fine-tuned only where validation says so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from evalmode.display import Display
from tests.training.graphs import keep_graphs
from tests.training.states import equal
from tests.training.tiny_backbone import NAME, make_dataset, make_network, save_dataset
from training.callbacks import SILENT, Callbacks, Outcome
from training.checkpoint import Epoch
from training.datasets import ReadOptions
from training.errors import NetworkError, TrainingDiverged
from training.evaluation import predict_logits
from training.fit import fit, fit_run
from training.interrupts import TrainingStopped
from training.loop import Execution
from training.networks import get_architecture
from training.networks.timm import _import_timm
from training.options import TrainOptions
from training.recipe import Recipe
from training.review import FILE
from training.run import BEST, EXACT, INITIAL, MEAN, VARIANCE, Run
from training.run_config import RunConfig
from training.stages import MAX_MAP_BYTES, StageSize, count_trained_stages, limit_views
from training.tensors import save_tensors

JOB = Path(__file__).with_name("transfer_job.py")
ROOT = JOB.parents[2]
RECIPE: dict[str, Any] = {
    **{"network": NAME, "fine_tune": 1, "views": 3, "mirror": True, "epochs": 3, "batch_size": 16},
    **{"optimizer": "adamw", "learning_rate": 0.01, "dropout": 0.2},
}
TUNED = "stages.2."  # the last of three

TrainStaged = Callable[..., Outcome]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch, graphs: Path) -> None:
    """Convert each backbone once, and leave out the trial of a user's network, which has tests of its own."""
    monkeypatch.setattr("training.features.convert", keep_graphs(graphs))
    monkeypatch.setattr("training.trial.try_network", lambda *_: None)


@pytest.fixture
def train_staged(tmp_path: Path) -> TrainStaged:
    """Train the tiny backbone in a new run: ``train_staged("name", callbacks, epochs=2)``."""

    def start(name: str = "run", callbacks: Callbacks = SILENT, **changes: Any) -> Outcome:
        dataset = make_dataset()
        run = Run.create(tmp_path / name, RunConfig.of(dataset, ReadOptions(), Recipe(**{**RECIPE, **changes})))
        return fit_run(run, run.config.build_network(), dataset, Execution(), callbacks)

    return start


def fit_tiny(tmp_path: Path, callbacks: Callbacks = SILENT, **options: Any) -> Run:
    """Train as the command does."""
    chosen = TrainOptions(**{"network": NAME, "report": False, "device": "cpu", **options})
    return fit(save_dataset(tmp_path), tmp_path / "run", chosen, callbacks)


def test_the_same_seed_gives_the_same_bytes(train_staged: TrainStaged) -> None:
    one, same, other = (train_staged(name, seed=seed) for name, seed in (("one", 0), ("same", 0), ("other", 1)))
    contents = [(outcome.run.folder / "exact.safetensors").read_bytes() for outcome in (one, same, other)]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    assert one.result.best_epoch > 0  # or nothing but the head would be compared


def test_frozen_stages_and_every_statistic_keep_their_bits(train_staged: TrainStaged) -> None:
    run = train_staged().run
    before, after = make_network().state_dict(), run.read_weights(EXACT)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in moved if not name.startswith(("head.", TUNED))} == set()
    assert {name for name in moved if name.endswith((MEAN, VARIANCE))} == {f"head.norm{MEAN}", f"head.norm{VARIANCE}"}
    learned = {f"{TUNED}{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
    assert learned | {"head.dense.weight", "head.dense.bias"} <= moved


def test_the_head_has_the_moments_of_the_training_features(train_staged: TrainStaged) -> None:
    run = train_staged().run
    features = safetensors.numpy.load_file(run.folder / "features" / "features.safetensors")["train"].astype(np.float64)
    pooled = features.reshape(-1, features.shape[-1])
    weights = run.read_weights(EXACT)
    np.testing.assert_allclose(weights[f"head.norm{MEAN}"].numpy(), pooled.mean(0), rtol=1e-6)
    np.testing.assert_allclose(weights[f"head.norm{VARIANCE}"].numpy(), pooled.var(0), rtol=1e-6)


def test_the_head_is_kept_if_fine_tuning_validates_worse(
    train_staged: TrainStaged, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs: list[Epoch] = []
    callbacks = replace(Display().callbacks(), on_epoch=epochs.append)
    outcome = train_staged("run", callbacks, learning_rate=10.0, epochs=1)
    best, run = outcome.best, outcome.run
    assert (epochs[0].val_accuracy, -epochs[0].val_loss) < (best.val_accuracy, -best.val_loss)
    assert outcome.result.best_epoch == 0
    head = run.read_weights(INITIAL)
    assert equal(run.read_weights(BEST), head)
    assert equal(run.read_weights(EXACT), head)
    printed = capsys.readouterr().out
    assert re.search(r"features .* of each image; \d views? of each training image, for the head", printed)
    fine_tuning = r"the last 1 of 3 stages; \d views? of each training image; not kept, since no epoch was better than"
    assert re.search(fine_tuning, printed)
    assert "best      the head alone, val " in printed


def test_without_fine_tuning_only_the_head_is_trained(train_staged: TrainStaged) -> None:
    outcome = train_staged(fine_tune=0)
    weights, before = outcome.run.read_weights(EXACT), make_network().state_dict()
    assert all(torch.equal(before[name], weights[name]) for name in before if not name.startswith("head."))
    assert equal(weights, outcome.run.read_weights(BEST))
    assert [stage["stage"] for stage in outcome.result.stages] == ["features", "head"]
    assert outcome.best.epoch == 0


@pytest.mark.parametrize("fine_tune", [0, 1])
def test_the_logits_of_the_result_are_those_of_the_exported_weights(train_staged: TrainStaged, fine_tune: int) -> None:
    run, dataset = train_staged(fine_tune=fine_tune).run, make_dataset()
    network, logits = run.load_network(EXACT), run.read_logits()
    assert logits.keys() == {"val", "test"}
    accuracies = []
    for name, split in (("val", dataset.val), ("test", dataset.test)):
        torch.testing.assert_close(logits[name], predict_logits(network, split), rtol=1e-4, atol=1e-4)
        accuracies.append((logits[name].argmax(1).numpy() == split.targets).mean())
    result = run.read_result()
    assert [result.exact_val_accuracy, result.test_accuracy] == pytest.approx(accuracies)
    assert json.loads((run.folder / FILE).read_text())["cross_validated"] == result.cross_validated
    assert not list((run.folder / "features").glob("*-maps.npy"))  # they would take gigabytes


@pytest.mark.parametrize(("fine_tune", "count"), [("none", 0), ("auto", 2), ("3", 3)])
def test_the_user_chooses_the_trained_stages(tmp_path: Path, fine_tune: str, count: int) -> None:
    changes: dict[str, Any] = {} if fine_tune == "none" else {"epochs": 1}
    run = fit_tiny(tmp_path, fine_tune=fine_tune, **changes)
    assert run.config.recipe.fine_tune == count
    assert Run.open(tmp_path / "run").config == run.config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fine_tune": "4"}, f"--fine-tune 4: {NAME} has 3 stages"),
        ({"fine_tune": "1", "network": "compact"}, "--fine-tune 1: compact has no pretrained stages, all of it is"),
        ({"shift": 2}, f"--shift 2: {NAME} is trained on random crops instead of shifts"),
        ({"fine_tune": "none", "epochs": 3, "batch_size": 8}, "--epochs, --batch-size would have no effect: only the"),
    ],
)
def test_options_without_an_effect_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError) as refused:
        fit_tiny(tmp_path, **options)
    assert str(refused.value).startswith(message)
    assert list((tmp_path / "run").iterdir()) == []  # nothing to remove before the next try


def test_stages_with_most_of_the_operations_are_not_trained() -> None:
    sizes = [StageSize(operations, 1) for operations in (10, 15, 50, 25)]
    assert count_trained_stages(sizes) == 2  # 75 of 100
    assert count_trained_stages(sizes[:3]) == 1  # 50 of 75, and then 65
    assert count_trained_stages([StageSize(1, 1), StageSize(9, 1)]) == 0
    assert count_trained_stages([StageSize(9, 1)]) == 0


def test_views_are_limited_by_the_size_of_their_maps() -> None:
    sizes = [StageSize(1, MAX_MAP_BYTES // 10), StageSize(1, MAX_MAP_BYTES // 100), StageSize(1, 1)]
    assert limit_views(6, 30, 2, sizes) == 3
    assert limit_views(6, 30, 1, sizes) == 6
    assert limit_views(6, 30, 3, sizes) == 1  # even one view is above the limit
    assert limit_views(6, 30, 0, sizes) == 2  # no maps are kept, and two views train the head


@pytest.mark.slow  # test_checkpoint.py resumes a training from scratch
def test_a_killed_training_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(JOB), str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert finished.returncode == 0, finished.stderr
    moments = finished.stdout.split()
    assert len(moments) == 6
    whole = describe_end(tmp_path / "whole")
    for moment in moments:
        assert describe_end(tmp_path / moment) == whole, moment


def describe_end(folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """The exact and the best weights, and all lines of figures without durations and dates."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for timed in (line, *line.get("stages", [])):
            timed |= {"seconds": 0, "finished": None}
    return (folder / "exact.safetensors").read_bytes(), (folder / "best.safetensors").read_bytes(), lines


def spoil(network: Any) -> None:
    with torch.no_grad():
        network.head.dense.weight.fill_(torch.nan)


def test_a_run_that_diverges_keeps_the_head(tmp_path: Path) -> None:
    dataset = make_dataset()
    run = Run.create(tmp_path / "run", RunConfig.of(dataset, ReadOptions(), Recipe(**RECIPE)))
    network: Any = run.config.build_network()
    network.stages[2][1].register_forward_hook(
        lambda module, inputs, output: output * torch.nan if network.training else output
    )
    with pytest.raises(TrainingDiverged, match=r"output of stages\.2\.1 .* The run keeps the weights of the head$"):
        fit_run(run, network, dataset, Execution(), SILENT)
    assert equal(run.read_weights(BEST), run.read_weights(INITIAL))
    assert all(tensor.isfinite().all() for tensor in run.read_weights(BEST).values())
    assert not run.has_weights(EXACT)


def test_backing_off_ends_with_finite_weights(tmp_path: Path) -> None:
    dataset = make_dataset()
    run = Run.create(tmp_path / "run", RunConfig.of(dataset, ReadOptions(), Recipe(**RECIPE)))
    network: Any = run.config.build_network()
    warnings: list[str] = []
    callbacks = Callbacks(on_step=lambda *_: None if warnings else spoil(network), on_warning=warnings.append)
    outcome = fit_run(run, network, dataset, Execution(back_off=True), callbacks)
    [warning] = warnings
    assert warning.endswith("Continuing from the last good epoch at learning rate 0.005")
    assert all(tensor.isfinite().all() for tensor in run.read_weights(EXACT).values())
    assert outcome.result.best_epoch == run.read_result().best_epoch


def test_ctrl_c_in_the_first_epoch_keeps_the_head(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(TrainingStopped, match="the best weights so far are in"):
        fit_tiny(tmp_path, Callbacks(on_step=interrupt), fine_tune="1")
    run = Run.open(tmp_path / "run")
    assert equal(run.read_weights(BEST), run.read_weights(INITIAL))
    assert run.read_weights(BEST)["head.dense.weight"].any()


def test_ctrl_c_before_there_is_a_head_names_no_weights(tmp_path: Path) -> None:
    def interrupt(stage: str, *_: object) -> None:
        if stage == "features":
            raise KeyboardInterrupt

    with pytest.raises(TrainingStopped, match="no weights were learned yet"):
        fit_tiny(tmp_path, Callbacks(on_load=interrupt))
    assert not Run.open(tmp_path / "run").has_weights()


def read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fine_tune", ["none", "1"])
def test_a_finished_run_resumes_to_the_same_result(tmp_path: Path, fine_tune: str) -> None:
    outcomes: list[Outcome] = []
    fit_tiny(tmp_path, Callbacks(on_outcome=outcomes.append), fine_tune=fine_tune)
    before = read_files(tmp_path / "run")

    def refuse(*_: object) -> None:
        raise AssertionError

    notices: list[str] = []
    quiet = Callbacks(on_step=refuse, on_stage=refuse, on_outcome=outcomes.append, on_notice=notices.append)
    fit_tiny(tmp_path, quiet, fine_tune=fine_tune, resume=True)
    assert read_files(tmp_path / "run") == before
    assert notices == [f"the training of {tmp_path / 'run'} is finished: there is nothing to resume"]
    first, again = outcomes
    assert again.best.val_loss == pytest.approx(first.best.val_loss)
    assert json.dumps(asdict(again.result)) == json.dumps(asdict(first.result))  # lists of tuples
    assert (again.norm_layers, again.unmoved_layers) == (first.norm_layers, first.unmoved_layers)
    assert (again.val_images, again.test_images) == (21, 24)
    assert (again.best.epoch, again.best.val_accuracy) == (first.best.epoch, first.best.val_accuracy)


@pytest.mark.skipif(find_spec("timm") is None, reason="evalmode[timm] is not installed")
def test_a_network_of_timm_starts_from_the_weights_of_its_file(tmp_path: Path) -> None:
    name, file = "timm:test_efficientnet", tmp_path / "model.safetensors"
    torch.manual_seed(3)
    model = _import_timm(name).create_model("test_efficientnet", num_classes=0)
    file.write_bytes(save_tensors(model.state_dict()))
    run = fit_tiny(tmp_path, network=name, weights=file, fine_tune="none")
    network: Any = run.config.build_network()
    assert run.config.weights == get_architecture(name).load_weights(network, name, file)
    loaded, trained = network.state_dict(), run.read_weights(EXACT)
    names = [one for one in loaded if not one.startswith("head.")]
    assert len(names) >= len(model.state_dict())
    assert all(torch.equal(loaded[one], trained[one]) for one in names)


def test_weights_of_a_users_backbone_are_its_functions_business(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=f"load them in the function of --network {NAME}, which is your own"):
        fit_tiny(tmp_path, weights=tmp_path / "model.safetensors")
