"""Warnings while a training goes wrong; a healthy training has none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from tests.training.conftest import StartRun
from training.callbacks import Callbacks
from training.datasets import Dataset
from training.loop import train
from training.observe import LayerStatistics
from training.warn import find_warnings

HEALTHY = LayerStatistics("norm", 8, 0.0, 1.0, 0.0, 1.0, -1.0, 0.0, 1.0, mean_gap=0.1, std_gap=0.1)
OTHER = replace(HEALTHY, layer="other")
COMPACT: dict[str, Any] = {"network": "compact", "optimizer": "muon", "learning_rate": 0.1, "batch_size": 32}
REFERENCE: dict[str, Any] = {"network": "reference"}


def test_a_healthy_epoch_has_no_warnings() -> None:
    assert find_warnings(23.0, 10, [HEALTHY, OTHER], [HEALTHY, OTHER]) == []
    assert find_warnings(2.3, 10, [], []) == []  # no batch norm


def test_a_loss_far_above_that_of_guessing_is_reported() -> None:
    [warning] = find_warnings(23.1, 10, [HEALTHY], [HEALTHY])
    assert warning.startswith("the loss is 23.1, guessing would have 2.3: weights have exploded")


@pytest.mark.parametrize("gap", [{"mean_gap": 0.51}, {"std_gap": 0.51}], ids=str)
def test_moving_statistics_that_lag_are_reported_for_the_worst_layer(gap: dict[str, float]) -> None:
    worse = replace(OTHER, **gap)  # type: ignore[arg-type]
    [warning] = find_warnings(2.3, 10, [replace(HEALTHY, mean_gap=0.505), worse], [])
    assert warning.startswith(
        "other: moving statistics are 0.51 standard deviations off (more than 0.5): eval mode lags"
    )


def test_statistics_that_training_does_not_move_are_not_reported() -> None:
    lagging = replace(OTHER, mean_gap=5.0)
    assert find_warnings(2.3, 10, [HEALTHY, lagging], [], still={"other"}) == []
    assert len(find_warnings(2.3, 10, [HEALTHY, lagging], [], still={"norm"})) == 1


def test_the_statistics_of_a_frozen_backbone_are_not_reported(start_run: StartRun, digits: Dataset) -> None:
    run, network = start_run(network="tests.training.own_networks:frozen", epochs=1)
    network.norm.running_mean += 50
    warnings: list[str] = []
    train(run, network, digits.train, digits.val, Callbacks(on_epoch=lambda epoch: warnings.extend(epoch.warnings)))
    assert not [warning for warning in warnings if warning.startswith("norm: moving statistics")]


def test_a_gap_that_is_nan_or_infinite_is_reported() -> None:
    [warning] = find_warnings(2.3, 10, [replace(HEALTHY, mean_gap=math.nan), replace(OTHER, std_gap=9.0)], [])
    assert warning.startswith("norm: moving statistics are inf standard deviations off")


@pytest.mark.parametrize("moved", [{"batch_mean": -3.1}, {"batch_std": 3.1}], ids=str)
def test_activations_that_drift_are_reported_for_the_worst_layer(moved: dict[str, float]) -> None:
    worse = replace(OTHER, **moved)  # type: ignore[arg-type]
    [warning] = find_warnings(2.3, 10, [replace(HEALTHY, batch_mean=3.05), worse], [HEALTHY, OTHER])
    assert warning.startswith("other: activations drifted by 3.1 times their spread (more than 3): weights may")
    assert find_warnings(2.3, 10, [worse], []) == []  # after the first epoch


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({**COMPACT, "epochs": 2}, []),
        ({**REFERENCE, "epochs": 2}, ["eval mode lags", "eval mode lags"]),  # Keras' momentum, forty steps per epoch
        ({**REFERENCE, "epochs": 1, "learning_rate": 1e3}, ["weights have exploded", "eval mode lags"]),
    ],
    ids=["healthy", "lagging", "exploded"],
)
def test_warnings_are_reported_and_recorded_in_each_epoch(
    start_run: StartRun, digits: Dataset, recipe: dict[str, Any], expected: list[str]
) -> None:
    run, network = start_run(**recipe)
    warnings: list[str] = []
    train(run, network, digits.train, digits.val, Callbacks(on_epoch=lambda epoch: warnings.extend(epoch.warnings)))
    assert len(warnings) == len(expected)
    assert all(part in warning for part, warning in zip(expected, warnings, strict=True))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [warning for line in lines for warning in line.get("warnings", [])] == warnings
