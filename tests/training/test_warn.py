"""What is said while a training goes wrong, and that nothing is said of one that does not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from training.callbacks import Callbacks
from training.datasets import Dataset
from training.loop import train
from training.observe import LayerStatistics
from training.run import Run
from training.warn import find_warnings

StartRun = Callable[..., tuple[Run, nn.Module]]
HEALTHY = LayerStatistics("norm", 8, 0.0, 1.0, 0.0, 1.0, -1.0, 0.0, 1.0, mean_gap=0.1, std_gap=0.1)
OTHER = replace(HEALTHY, layer="other")
COMPACT: dict[str, Any] = {"network": "compact", "optimizer": "muon", "learning_rate": 0.1, "batch_size": 32}
REFERENCE: dict[str, Any] = {"network": "reference"}


def test_nothing_is_said_of_a_healthy_epoch() -> None:
    assert find_warnings(23.0, 10, [HEALTHY, OTHER], [HEALTHY, OTHER]) == []
    assert find_warnings(2.3, 10, [], []) == []  # no batch norm


def test_a_loss_far_above_guessing_is_said() -> None:
    [told] = find_warnings(23.1, 10, [HEALTHY], [HEALTHY])
    assert told.startswith("the loss is 23.1, guessing would have 2.3: weights have exploded")


@pytest.mark.parametrize("gap", [{"mean_gap": 0.51}, {"std_gap": 0.51}], ids=str)
def test_an_eval_mode_that_lags_behind_is_said_of_the_worst_layer(gap: dict[str, float]) -> None:
    worse = replace(OTHER, **gap)  # type: ignore[arg-type]
    [told] = find_warnings(2.3, 10, [replace(HEALTHY, mean_gap=0.505), worse], [])
    assert told.startswith("other: moving statistics are 0.51 standard deviations off (more than 0.5): eval mode lags")


def test_statistics_that_training_does_not_move_do_not_lag() -> None:
    lagging = replace(OTHER, mean_gap=5.0)
    assert find_warnings(2.3, 10, [HEALTHY, lagging], [], still={"other"}) == []
    assert len(find_warnings(2.3, 10, [HEALTHY, lagging], [], still={"norm"})) == 1


def test_a_training_of_a_frozen_backbone_is_not_warned_about_it(start_run: StartRun, digits: Dataset) -> None:
    run, network = start_run(network="tests.training.own_networks:frozen", epochs=1)
    network.norm.running_mean += 50
    told: list[str] = []
    train(run, network, digits.train, digits.val, Callbacks(on_epoch=lambda epoch: told.extend(epoch.warnings)))
    assert not [warning for warning in told if warning.startswith("norm: moving statistics")]


def test_a_gap_that_is_nan_or_infinite_is_said() -> None:
    [told] = find_warnings(2.3, 10, [replace(HEALTHY, mean_gap=math.nan), replace(OTHER, std_gap=9.0)], [])
    assert told.startswith("norm: moving statistics are inf standard deviations off")


@pytest.mark.parametrize("moved", [{"batch_mean": -3.1}, {"batch_std": 3.1}], ids=str)
def test_activations_that_drift_are_said_of_the_worst_layer(moved: dict[str, float]) -> None:
    worse = replace(OTHER, **moved)  # type: ignore[arg-type]
    [told] = find_warnings(2.3, 10, [replace(HEALTHY, batch_mean=3.05), worse], [HEALTHY, OTHER])
    assert told.startswith("other: activations drifted by 3.1 times their spread (more than 3): weights may")
    assert find_warnings(2.3, 10, [worse], []) == []  # after the first epoch


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({**COMPACT, "epochs": 2}, []),
        ({**REFERENCE, "epochs": 2}, ["eval mode lags", "eval mode lags"]),  # Keras' momentum, and forty steps an epoch
        ({**REFERENCE, "epochs": 1, "learning_rate": 1e3}, ["weights have exploded", "eval mode lags"]),
    ],
    ids=["healthy", "lagging", "exploded"],
)
def test_a_training_says_so_each_epoch(
    start_run: StartRun, digits: Dataset, recipe: dict[str, Any], said: list[str]
) -> None:
    run, network = start_run(**recipe)
    told: list[str] = []
    train(run, network, digits.train, digits.val, Callbacks(on_epoch=lambda epoch: told.extend(epoch.warnings)))
    assert len(told) == len(said)
    assert all(part in warning for part, warning in zip(said, told, strict=True))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [warning for line in lines for warning in line.get("warnings", [])] == told
