"""An accuracy is shown with its 95% confidence interval."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from evalmode.certification.metrics import CrossValidated, Quality, wilson_interval
from evalmode.display import Display
from training.agreement import Agreement
from training.callbacks import Outcome
from training.checkpoint import Epoch
from training.publish import Artifact
from training.run import Run
from training.run_metrics import Result

CROSS_VALIDATED = CrossValidated(0.875, wilson_interval(210, 240), 240, 5)
CROSS_VALIDATED_LINE = (
    "crossval  0.8750 (0.8272 to 0.9110 with 95% confidence, 240 images), 5 folds on pretrained features"
)


def show_outcome(capsys: pytest.CaptureFixture[str], cross_validated: dict[str, Any] | None) -> list[str]:
    epoch = Epoch(3, 0.5, 0.9, 0.9, 0.4, 0.1, 1.0, [], [])
    result = Result(3, 0.9, [], 22 / 24, cross_validated=cross_validated)
    run = Run(Path("run"), cast("Any", None))
    Display().callbacks().on_outcome(Outcome(run, epoch, result, 1, 0, 20, 24))
    return capsys.readouterr().out.splitlines()


def test_a_training_shows_intervals_of_validation_and_test(capsys: pytest.CaptureFixture[str]) -> None:
    low, high = wilson_interval(18, 20)
    best, test, run = show_outcome(capsys, None)[-3:]
    assert best == f"best      epoch 3, val 0.9000 ({low:.4f} to {high:.4f} with 95% confidence, 20 images)"
    assert test == "test      0.9167 (0.7415 to 0.9768 with 95% confidence, 24 images), read once"
    assert run.startswith("run ")


def test_a_training_shows_cross_validated_accuracy_beside_that_of_few_test_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = show_outcome(capsys, asdict(CROSS_VALIDATED))
    assert lines[-2] == CROSS_VALIDATED_LINE
    assert lines[-3].startswith("test ")


@pytest.mark.parametrize("cross_validated", [None, CROSS_VALIDATED])
def test_an_artifact_shows_intervals(
    capsys: pytest.CaptureFixture[str], cross_validated: CrossValidated | None
) -> None:
    quality = Quality(24, 22 / 24, wilson_interval(22, 24), (0.5,), (0.1, 0.1), 1.0, cross_validated)
    agreement = Agreement(24, 1e-6, 1e-4, 0, 0)
    artifact = Artifact("m", "1", Path("m"), "sha256:0", 100, (), agreement, quality, "few images")
    Display().callbacks().on_published(artifact)
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("accuracy  0.9167 (0.7415 to 0.9768 with 95% confidence, 24 images)")
    assert (lines[at + 1] == CROSS_VALIDATED_LINE) == (cross_validated is not None)
    assert any(re.match("calibration error", line) for line in lines)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm"}.items():  # rich then shows bars as on a terminal
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("terminal")
def test_a_warning_has_a_line_of_its_own_beside_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    callbacks = display.callbacks()
    callbacks.on_load("decoding", 1, 1)
    callbacks.on_warning("labels are uneven")
    display.close()
    erase_line, yellow = "\r\x1b[2K", "\x1b[33m"
    assert f"{erase_line}{yellow}warning   labels are uneven" in capsys.readouterr().out


@pytest.mark.usefixtures("terminal")
def test_an_export_shows_a_bar_without_the_progress_of_the_loading_before_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = Display()
    callbacks = display.callbacks()
    callbacks.on_load("decoding", 1, 1)
    callbacks.on_export("exporting")
    display.close()
    bar = capsys.readouterr().out.rpartition("exporting and checking")[2]
    assert bar
    assert "%" not in bar
