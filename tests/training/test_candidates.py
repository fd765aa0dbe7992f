"""Of two networks that are trained on the same data, validation chooses one; the folder of both is its run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evalmode.errors import UsageError
from tests.training.graphs import keep_graphs
from tests.training.tiny_backbone import NAME, save_dataset
from training.callbacks import SILENT, Callbacks
from training.errors import RunError
from training.interrupts import TrainingStopped
from training.options import TrainOptions
from training.pipeline import train
from training.run import CHOSEN, Run
from training.run_metrics import Result

CANDIDATES = NAME, "compact"


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(autouse=True)
def _small_candidates(monkeypatch: pytest.MonkeyPatch, graphs: Path) -> None:
    """The tiny backbone takes the place of the network for photos, and the trial of a user's network is left out."""
    monkeypatch.setattr("training.candidates.PHOTO_NETWORK", NAME)
    monkeypatch.setattr("training.candidates.CANDIDATES", CANDIDATES)
    monkeypatch.setattr("training.features.convert", keep_graphs(graphs))
    monkeypatch.setattr("training.trial.try_network", lambda *_: None)


def compare(folder: Path, callbacks: Callbacks = SILENT, **options: Any) -> Run:
    chosen = {"compare": True, "report": False, "device": "cpu", "epochs": 1, **options}
    return train(save_dataset(folder), folder / "out", TrainOptions(**chosen), callbacks)


def read_accuracies(folder: Path) -> dict[str, float]:
    return {name: Run.open(folder / "out" / name).read_result().exact_val_accuracy for name in CANDIDATES}


def test_the_network_that_validates_better_is_chosen(tmp_path: Path) -> None:
    notices: list[str] = []
    run = compare(tmp_path, Callbacks(on_notice=notices.append))
    accuracies = read_accuracies(tmp_path)
    assert len(set(accuracies.values())) == 2  # or the order would decide
    better = max(CANDIDATES, key=lambda name: accuracies[name])
    assert run.config.recipe.network == better
    assert json.loads((tmp_path / "out" / CHOSEN).read_text()) == {"network": better, "val_accuracy": accuracies}
    assert notices[-1].startswith(f"chosen by the accuracy on validation images: {better} ({NAME} 0.")
    opened = Run.open(tmp_path / "out")
    assert (opened.folder, opened.config) == (run.folder, run.config)


@pytest.mark.parametrize(("accuracy", "chosen"), [(1.0, NAME), (0.5, NAME), (0.0, "compact")])
def test_of_two_equal_networks_the_pretrained_one_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accuracy: float, chosen: str
) -> None:
    def pretend(data: str, out: Path, options: TrainOptions, callbacks: Callbacks) -> Any:
        result = Result(1, accuracy if options.network == NAME else 0.5, [], 0.0)
        recipe = SimpleNamespace(network=options.network)
        return SimpleNamespace(config=SimpleNamespace(recipe=recipe), read_result=lambda: result)

    monkeypatch.setattr("training.candidates.fit", pretend)
    assert compare(tmp_path).config.recipe.network == chosen
    assert json.loads((tmp_path / "out" / CHOSEN).read_text())["network"] == chosen


def test_each_network_gets_half_of_the_time_and_the_options_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[TrainOptions] = []

    def stop(data: str, out: Path, given: TrainOptions, callbacks: Callbacks) -> Any:
        options.append(given)
        recipe = SimpleNamespace(network=given.network)
        return SimpleNamespace(config=SimpleNamespace(recipe=recipe), read_result=lambda: Result(1, 0.5, [], 0.5))

    monkeypatch.setattr("training.candidates.fit", stop)
    compare(tmp_path, minutes=5, fine_tune="1", seed=7)
    assert [one.network for one in options] == list(CANDIDATES)
    assert [one.minutes for one in options] == [2.5, 2.5]
    assert [one.fine_tune for one in options] == ["1", "auto"]
    assert [(one.seed, one.compare) for one in options] == [(7, False)] * 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"network": "missing"}'])
def test_a_damaged_choice_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / CHOSEN).write_text(content)
    with pytest.raises(RunError) as refused:
        Run.open(tmp_path)
    assert str(refused.value).startswith(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_comparison_resumes_after_the_first_network(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        if (tmp_path / "out" / "compact" / "run.json").exists():
            raise KeyboardInterrupt

    with pytest.raises(TrainingStopped):
        compare(tmp_path, Callbacks(on_step=interrupt))
    assert not (tmp_path / "out" / CHOSEN).exists()
    first = (tmp_path / "out" / NAME / "exact.safetensors").read_bytes()
    with pytest.raises(RunError, match="is not empty"):
        compare(tmp_path)
    run = compare(tmp_path, resume=True)
    assert (tmp_path / "out" / NAME / "exact.safetensors").read_bytes() == first
    assert run.folder == Run.open(tmp_path / "out").folder
    assert len(read_accuracies(tmp_path)) == 2


def test_a_comparison_and_a_single_training_are_not_resumed_as_each_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / NAME).mkdir(parents=True)
    (out / NAME / "run.json").write_text("{}")
    with pytest.raises(RunError, match="holds the trainings of --compare: give --compare, too"):
        train("nowhere", out, TrainOptions(resume=True))
    (out / "run.json").write_text("{}")
    with pytest.raises(RunError, match="holds a training of one network: resume it without --compare"):
        compare(tmp_path, resume=True)
    assert not (out / CHOSEN).exists()


def test_a_comparison_in_several_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    with pytest.raises(RunError, match="--compare trains in one process: start it without torchrun"):
        compare(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_comparison_is_for_the_network_auto() -> None:
    with pytest.raises(UsageError, match="compare is for the network auto, not for compact: leave one of them out"):
        TrainOptions(compare=True, network="compact")
