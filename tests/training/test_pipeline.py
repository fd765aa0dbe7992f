"""Training and export from Python give the same run as the command, with progress by callbacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evalmode
from evalmode.errors import UsageError
from tests.training.states import equal
from training.callbacks import SILENT, Callbacks
from training.datasets import load_dataset
from training.errors import NetworkError, RunError
from training.interrupts import TrainingStopped
from training.options import TrainOptions
from training.run import EXACT, REPORT, Run

OPTIONS: dict[str, Any] = {"network": "reference", "epochs": 2, "seed": 3, "device": "cpu", "report": False}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def events() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, events: list[tuple[Any, ...]]) -> Run:
    """Two epochs on the digits; ``events`` holds the arguments of the callbacks."""
    names = ("on_data", "on_network", "on_step", "on_epoch", "on_outcome")
    callbacks = {name: lambda *values, name=name: events.append((name, *values)) for name in names}
    folder = tmp_path_factory.mktemp("python") / "run"
    return evalmode.train("digits", folder, callbacks=Callbacks(**callbacks), **OPTIONS)


def test_callbacks_are_called_in_order(run: Run, events: list[tuple[Any, ...]]) -> None:
    digits = load_dataset("digits", seed=OPTIONS["seed"])
    names = [name for name, *_ in events]
    steps = -(-len(digits.train) // 32)
    epoch = ["on_step"] * steps + ["on_epoch"]
    assert names == ["on_data", "on_network", *epoch, *epoch, "on_outcome"]
    data, network, outcome = events[0][1], events[1][1], events[-1][1]
    assert data.digest() == digits.digest()
    assert (network.name, network.device, network.processes) == ("reference", "cpu", 1)
    assert [event[1:3] for event in events[2 : 2 + steps]] == [(step, steps) for step in range(1, steps + 1)]
    assert outcome.run.folder == run.folder
    assert outcome.best.epoch == outcome.result.best_epoch
    assert outcome.result == run.read_result()


def test_a_finished_run_is_opened_by_its_path(run: Run) -> None:
    opened = evalmode.Run.open(str(run.folder))
    assert (opened.folder, opened.config, opened.read_result()) == (run.folder, run.config, run.read_result())


def test_the_run_equals_that_of_the_command(run: Run, tmp_path: Path) -> None:
    flags = ["--network", "reference", "--epochs", "2", "--seed", "3", "--device", "cpu", "--no-report"]
    command = [sys.executable, "-m", "evalmode", "train", "digits", "--out", str(tmp_path / "run"), *flags]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    other = Run.open(tmp_path / "run")
    assert other.config == run.config
    for which in ("initial", "best", EXACT):
        assert equal(other.read_weights(which), run.read_weights(which))
    assert other.read_result() == run.read_result()


def test_a_run_is_exported_from_its_object_or_its_folder(run: Run, tmp_path: Path) -> None:
    called: list[object] = []
    callbacks = Callbacks(on_export=called.append, on_published=called.append)
    artifact = run.export(tmp_path / "models", "digits", callbacks=callbacks)
    assert called == ["exporting", artifact]
    assert artifact.path == tmp_path / "models" / "digits" / "1" / "model.onnx"
    assert (artifact.name, artifact.version, artifact.variants) == ("digits", "1", ())
    assert artifact.size_bytes == artifact.path.stat().st_size
    again = evalmode.export(run.folder, tmp_path / "models", "digits", callbacks=SILENT)
    assert (again.version, again.digest) == ("2", artifact.digest)
    assert evalmode.load(artifact.path).manifest.labels == run.config.labels


def test_an_artifact_is_laid_out_for_other_tools_with_the_report_unless_the_data_are_private(
    run: Run, tmp_path: Path
) -> None:
    (run.folder / REPORT).write_text("<p>mistakes")
    options: dict[str, Any] = {"author": "Ada Lovelace", "license": "MIT", "callbacks": SILENT}
    artifact = run.export(tmp_path / "models", "digits", also=["ovms", f"huggingface={tmp_path}/hub"], **options)
    assert [(one.kind, one.path) for one in artifact.layouts] == [
        ("ovms", tmp_path / "models-ovms" / "digits"),
        ("huggingface", tmp_path / "hub" / "digits"),
    ]
    for path in (tmp_path / "models-ovms/digits/1/model.onnx", tmp_path / "hub/digits/1/model.onnx"):
        assert path.read_bytes() == artifact.path.read_bytes()
    assert (tmp_path / "hub/digits/1/report.html").read_text() == "<p>mistakes"
    assert "\nMade by Ada Lovelace.\nLicence: MIT.\n" in (tmp_path / "hub/digits/1/README.md").read_text()
    manifest = evalmode.load(artifact.path).manifest
    assert (manifest.properties["author"], manifest.properties["license"]) == ("Ada Lovelace", "MIT")
    again = run.export(tmp_path / "models", "digits", **options)
    assert (again.version, again.digest, again.layouts) == ("2", artifact.digest, ())
    private = run.export(tmp_path / "models", "digits", golden="synthetic", also="huggingface", **options)
    assert sorted(path.name for path in (private.layouts[0].path / "3").iterdir()) == [
        *("README.md", "config.json", "model.onnx")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"also": "tritn"}, "--also tritn: 'tritn' is unknown: choose one of triton, kserve, ovms, huggingface"),
        ({"also": 3}, "also 3 is not of type tuple"),
        ({"author": ""}, "author '' is not a line of text"),
        ({"license": "a\nb"}, r"license 'a\\nb' is not a line of text"),
    ],
)
def test_what_an_export_cannot_state_is_refused_at_once(run: Run, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run.export("models", "digits", callbacks=SILENT, **options)


def test_lines_are_printed_without_callbacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evalmode.train("digits", tmp_path / "run", **{**OPTIONS, "epochs": 1})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith("warning")] == [
        *("data", "pixels", "network", "epoch", "1", "best", "test", "run")
    ]


def test_ctrl_c_saves_the_best_weights_and_restores_the_signal_handler(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def press(step: int, steps: int, loss: float) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingStopped, match=r"the best weights so far are in .*run"):
        evalmode.train("digits", tmp_path / "run", callbacks=Callbacks(on_step=press), **OPTIONS)
    assert signal.getsignal(signal.SIGINT) is before
    assert Run.open(tmp_path / "run").has_weights()
    with pytest.raises(RunError, match="the training is not finished"):
        Run.open(tmp_path / "run").read_result()


def test_a_run_is_resumed(run: Run, tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(TrainingStopped):
        evalmode.train("digits", tmp_path / "run", callbacks=Callbacks(on_epoch=stop), **OPTIONS)
    resumed = evalmode.train("digits", tmp_path / "run", callbacks=SILENT, resume=True, **OPTIONS)
    assert equal(resumed.read_weights(EXACT), run.read_weights(EXACT))


def test_a_folder_that_is_not_empty_is_refused(run: Run) -> None:
    with pytest.raises(RunError, match="is not empty"):
        evalmode.train("digits", run.folder, callbacks=SILENT, **OPTIONS)


def test_an_unknown_network_is_refused_before_the_run_is_created(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="no network 'resnet'"):
        evalmode.train("digits", tmp_path / "run", callbacks=SILENT, network="resnet")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs 0 is out of range: at least 1"),
        ({"epochs": "5"}, "epochs '5' is not of type int"),
        ({"epochs": True}, "epochs True is not of type int"),
        ({"learning_rate": "0.1"}, "learning_rate '0.1' is not of type float"),
        ({"cache": 5}, "cache 5 is not of type Path"),
        ({"dropout": 1.0}, "dropout 1.0 is out of range: at least 0, below 1"),
        ({"learning_rate": float("nan")}, "learning_rate nan is out of range: above 0, at most"),
        ({"image_size": 64}, r"image_size 64 is not \(height, width\) in pixels"),
        ({"image_size": (64, 0)}, r"image_size \(64, 0\) is not \(height, width\) in pixels"),
        ({"device": "gpu"}, "device 'gpu' is unknown: choose cpu or cuda or auto"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evalmode.train("digits", tmp_path / "run", **options)


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a training has no option 'epoch': did you mean 'epochs'"):
        evalmode.train("digits", tmp_path / "run", epoch=1)
    with pytest.raises(UsageError, match="an export has no option 'mirored': did you mean 'mirrored'"):
        evalmode.export(tmp_path / "run", tmp_path / "models", "digits", mirored=True)


def test_inclusive_bounds_are_accepted() -> None:
    assert TrainOptions(width=0.125, learning_rate=1e30, dropout=0.0, seed=2**32 - 1).seed == 2**32 - 1


def test_python_values_are_converted_to_the_type_of_the_option(tmp_path: Path) -> None:
    options = TrainOptions(width=1, epochs=np.int64(2), image_size=[8, 4], cache=str(tmp_path))  # type: ignore[arg-type]
    assert (repr(options.width), type(options.epochs), options.image_size) == ("1.0", int, (8, 4))
    assert options.cache == tmp_path


def test_the_command_has_a_flag_for_every_option() -> None:
    from evalmode.cli.train import train

    names = {parameter.name for parameter in train.params}
    assert set(TrainOptions.__dataclass_fields__) | {"data", "out", "as_json", "quiet"} == names


def test_help_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, evalmode.cli.train, evalmode.cli.export, evalmode.cli.report\n"
    code += "assert not {'torch', 'numpy', 'platformdirs'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
