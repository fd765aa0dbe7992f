"""The tables of checks: ``certify`` requires each to pass, ``check`` reports each."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import onnx
import pytest

from evalmode.certification.checks import DECODER_CHECKS, GRAPH_CHECKS, LABEL_CHECKS, REPLAY_CHECKS, RUN_CHECKS
from evalmode.certification.verdicts import examine
from evalmode.errors import TrainMode
from tests.conftest import colour_artifact, colour_graph


def fail(subject: object) -> str:
    raise TrainMode("no")


def test_check_reports_every_check() -> None:
    about_file = ["file", "operators", "eval mode", "weights", "digest", "metadata"]
    by_running = ["outputs", "repeats", "batches", "decoder", "replay", "labels"]
    assert [verdict.check for verdict in examine(colour_artifact())] == about_file + by_running


def test_an_artifact_that_onnxruntime_cannot_load_is_still_compared_with_its_certificate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = colour_artifact()
    monkeypatch.setattr("evalmode.certification.runs.open_cpu_session", Mock(side_effect=RuntimeError("no kernel")))
    verdicts = [(verdict.check, verdict.reason) for verdict in examine(artifact)[-4:]]
    assert verdicts == [("runs", "ArtifactInvalid"), ("decoder", ""), ("replay", "ArtifactInvalid"), ("labels", "")]


@pytest.mark.parametrize("name", [*GRAPH_CHECKS, *RUN_CHECKS, *DECODER_CHECKS, *REPLAY_CHECKS, *LABEL_CHECKS])
def test_check_reports_a_failed_check_and_continues(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = colour_artifact()
    for table in (GRAPH_CHECKS, RUN_CHECKS, DECODER_CHECKS, REPLAY_CHECKS, LABEL_CHECKS):
        if name in table:
            monkeypatch.setitem(table, name, fail)
    verdicts = examine(artifact)
    assert [(verdict.check, verdict.reason) for verdict in verdicts if not verdict.passed] == [(name, "TrainMode")]
    assert len(verdicts) > 3


@pytest.mark.parametrize("name", [*GRAPH_CHECKS, *RUN_CHECKS])
def test_certify_requires_every_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRAPH_CHECKS if name in GRAPH_CHECKS else RUN_CHECKS, name, fail)
    with pytest.raises(TrainMode):
        colour_artifact()


def test_a_network_that_onnxruntime_cannot_load_fails_the_check_of_runs() -> None:
    graph = colour_graph()
    graph.graph.node[0].op_type = "NoSuchOperator"
    verdicts = examine(graph.SerializeToString())
    assert [(verdict.check, verdict.passed) for verdict in verdicts[-2:]] == [("certificate", None), ("runs", False)]


def test_the_runs_of_a_network_of_another_tool_are_checked() -> None:
    graph = colour_graph()
    assert {verdict.check for verdict in examine(graph.SerializeToString())} >= set(RUN_CHECKS)
    graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    (runs,) = (verdict for verdict in examine(graph.SerializeToString()) if verdict.check == "runs")
    assert (runs.passed, runs.finding.startswith("it takes image tensor(int32)")) == (None, True)


def test_damaged_bytes_fail_the_check_of_the_file() -> None:
    (verdict,) = examine(np.random.default_rng(0).bytes(64))
    assert (verdict.check, verdict.passed, verdict.reason) == ("file", False, "ArtifactInvalid")
