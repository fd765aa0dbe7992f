"""Requests that are alone: several threads where they give the same bits."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from evalmode.artifact.parts import split_graph
from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT, LOGITS
from evalmode.errors import LoadLimitExceeded
from evalmode.runtime import threads
from evalmode.runtime.loading import LoadOptions, load_artifact
from evalmode.runtime.lone import FIRST_PAUSE, LONGEST_PAUSE, Lone
from evalmode.runtime.model import ImageClassifier
from evalmode.runtime.provider import CUDA
from evalmode.runtime.threads import add_lone
from tests.conftest import map_artifact, map_graph

IMAGE = np.full((1, 4, 4, 3), 7, np.uint8)
GRAPH = split_graph(map_graph(), (ACTIVATION_MAP,)).write_first()


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small networks use several threads, too."""
    monkeypatch.setattr(threads, "MIN_RUN_S", 0.0)


class Recorder:
    """A session that records the outputs that it is asked for, and can change the answer."""

    def __init__(self, session: Any, change: float = 0.0) -> None:
        self.asked: list[Any] = []
        self._session, self._change = session, np.float32(change)

    def run(self, names: Any, inputs: Any, options: Any = None) -> list[np.ndarray]:
        self.asked.append(names)
        return [array + self._change for array in self._session.run(names, inputs, options)]


@pytest.mark.usefixtures("any_size")
class TestSecondSession:
    def test_has_several_threads_that_sleep_between_runs(self) -> None:
        loaded = load_artifact(map_artifact(), options=LoadOptions(lone_threads=2))
        assert loaded.lone
        options = loaded.lone.session.get_session_options()
        assert options.intra_op_num_threads == 2
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        assert loaded.session.get_session_options().intra_op_num_threads == 1

    def test_runs_one_input_that_is_alone(self, mapped: ImageClassifier) -> None:
        recorder = Recorder(mapped.session)
        model = replace(mapped, lone=Lone(recorder, one_s=1e9))
        model.run({INPUT: IMAGE})
        model.run({INPUT: np.repeat(IMAGE, 2, axis=0)}, (), True)
        assert recorder.asked == []
        alone = model.run({INPUT: IMAGE}, (ACTIVATION_MAP,), True)
        assert len(recorder.asked) == 1
        assert alone[LOGITS].tobytes() == model.run({INPUT: IMAGE})[LOGITS].tobytes()

    def test_does_not_change_the_time_that_a_batch_is_expected_to_take(self, mapped: ImageClassifier) -> None:
        model = replace(mapped, lone=Lone(mapped.session, one_s=1e9))
        before = [*model.row_s]
        model.run({INPUT: IMAGE}, (), True)
        assert [*model.row_s] == before

    @pytest.mark.parametrize("change", [0.0, 1e-6])
    def test_is_used_only_if_it_gives_the_same_bits(
        self, mapped: ImageClassifier, change: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        with patch.object(threads, "open_lone_session", lambda graph, count: Recorder(mapped.session, change)):
            model = add_lone(mapped, GRAPH, 2)
        assert (model.lone is None) == (change > 0)
        assert ("give other bits" if change else "a request that is alone gets 2") in caplog.text

    def test_is_not_opened_for_one_thread_a_gpu_or_answers_that_depend_on_the_batch(
        self, mapped: ImageClassifier
    ) -> None:
        assert add_lone(mapped, GRAPH, 2).lone
        assert not add_lone(mapped, GRAPH, 1).lone
        assert not add_lone(replace(mapped, provider=CUDA), GRAPH, 2).lone
        assert not add_lone(replace(mapped, batch_invariant=False), GRAPH, 2).lone

    def test_is_compared_within_the_time_limit_of_the_replay(self, mapped: ImageClassifier) -> None:
        with (
            patch.object(threads, "RUNS", 10**9),
            pytest.raises(LoadLimitExceeded, match=r"takes more than 0\.2 s"),
        ):
            add_lone(mapped, GRAPH, 2, replay_s=0.2)


def test_a_network_that_takes_less_than_a_millisecond_gets_no_second_session(mapped: ImageClassifier) -> None:
    with patch.object(threads, "_time_runs", lambda *_: 0.9e-3):
        assert add_lone(mapped, GRAPH, 2).lone is None
    with patch.object(threads, "_time_runs", lambda *_, **__: 1.1e-3):
        assert add_lone(mapped, GRAPH, 2).lone


class TestPause:
    def count_skipped(self, lone: Lone) -> int:
        """Count the requests until one is due."""
        skipped = 0
        while not lone.is_due():
            skipped += 1
        return skipped

    def test_follows_a_slow_run_and_grows_while_runs_are_slow(self) -> None:
        lone = Lone(None, one_s=1.0)
        pauses = []
        for _ in range(6):
            lone.note(1.1)
            pauses.append(self.count_skipped(lone))
        assert pauses == [FIRST_PAUSE, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]

    def test_is_short_again_after_a_fast_run(self) -> None:
        lone = Lone(None, one_s=1.0)
        for seconds in (1.1, 1.1, 0.9):
            lone.note(seconds)
            self.count_skipped(lone)
        lone.note(1.2)
        assert self.count_skipped(lone) == FIRST_PAUSE

    def test_does_not_follow_a_slow_run_that_loses_less_than_was_saved(self) -> None:
        lone = Lone(None, one_s=1.0)
        for seconds in (0.5, 0.5, 1.9, 0.5):
            lone.note(seconds)
            assert self.count_skipped(lone) == 0
        lone.note(1.7)
        assert self.count_skipped(lone) == FIRST_PAUSE

    def test_follows_even_if_runs_were_fast_for_long(self) -> None:
        lone = Lone(None, one_s=1.0)
        for _ in range(1000):
            lone.note(0.5)
        for _ in range(5):
            lone.note(2.0)
        assert self.count_skipped(lone) == FIRST_PAUSE
