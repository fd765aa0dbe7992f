"""A version that ends workers while it is loaded is not loaded again; the version before it keeps answering."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from evalmode.artifact.publishing import publish
from evalmode.errors import ArtifactInvalid, ProviderUnavailable, WorkerUnavailable
from evalmode.limits import Limits
from serving.config import LogConfig, ServeConfig
from serving.services.models import Models
from serving.services.source import Facts
from serving.trials import Trials
from serving.workers.child import Child
from serving.workers.counters import create_counters
from serving.workers.group import Settings, WorkerGroup
from serving.workers.repository import SharedSource
from serving.workers.snapshots import decode_figures
from serving.workers.state import FileVersion, State
from serving.workers.supervisor import make_settings
from tests.conftest import colour_artifact
from tests.hostile import endless_loop
from tests.serving.conftest import WAIT_S, refresh, spawn, wait_until


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path, "colours", colour_artifact())
    return tmp_path


class Started:
    """A group of workers that serves a repository.

    Attributes:
        group: The group.
        ended: The numbers of the workers that have ended.
        models: Their models, once ``follow`` was called.
    """

    def __init__(self, repository: Path, workers: int, **options: object) -> None:
        self.config = ServeConfig(repository=repository, port=0, workers=str(workers), no_metrics=True, **options)  # type: ignore[arg-type]
        self.ended: list[int] = []
        settings = make_settings(self.config, LogConfig(), create_counters(workers))
        self.group = WorkerGroup(settings, lambda kind, message, data: ({}, b""), self.quarantine, self.ended.append)
        self.group.start()

    def quarantine(self, version: FileVersion, error: ArtifactInvalid) -> None:
        self.models.quarantine((version[0], int(version[1])), error)

    def follow(self) -> None:
        """Load the models, and wait until all workers answer by them."""
        source = SharedSource(self.group, repository=self.config.repository, trials=Trials(self.config.limits))
        self.models = Models.open_source(source)
        self.models.follow(lambda entries: self.group.publish(State.of(self.models, entries)))
        self.group.wait_until_ready(threading.Event())

    def list_versions(self) -> set[tuple[str, ...]]:
        """The loaded versions of ``colours``, as each worker has them."""
        answers = self.group.ask_all("snapshot", 10, {"images": False}).values()
        assert all(answers)
        return {
            tuple(version for _, version in sorted(decode_figures(answer[1]).models)) for answer in answers if answer
        }


@pytest.fixture
def started(repository: Path) -> Iterator[Started]:
    made = Started(repository, 2)
    try:
        made.follow()
        yield made
    finally:
        made.group.kill()


def test_a_version_that_ends_two_workers_is_not_loaded_until_its_file_changes(
    started: Started, repository: Path
) -> None:
    models, group = started.models, started.group
    publish(repository, "colours", endless_loop())
    with patch.object(Trials, "examine"):  # the check in a child process has found nothing
        killed = {end_while_loading(started, signal.SIGKILL)}
        assert models.list_entries()[-1].failed
        wait_until(lambda: group.restarts == 1 and group.is_ready())
        killed.add(end_while_loading(started, signal.SIGSEGV))
        refresh(models)
    wait_until(lambda: group.restarts == 2 and group.is_ready())  # it is also ready until its end is noticed
    assert started.ended == [1, 1]
    assert not killed & {*group.list_processes()}
    newest = models.list_entries()[-1]
    assert (newest.version, newest.state, newest.failed) == ("2", "UNAVAILABLE", True)
    assert "workers ended twice while they loaded colours/2, sha256:" in newest.reason
    assert "worker 1 ended by SIGSEGV" in newest.reason
    assert started.list_versions() == {("1",)}

    (repository / "colours" / "2" / "model.onnx").write_bytes(colour_artifact(("rot", "grün", "blau")))
    refresh(models)
    assert group.wait_until_published(30)
    assert started.list_versions() == {("1", "2")}


def end_while_loading(started: Started, number: signal.Signals) -> int:
    """End the first worker while it loads a version that was published; return its process."""
    loading = spawn(refresh, started.models)
    wait_until(lambda: started.group._pending)
    first = started.group.list_processes()[0]
    os.kill(first, number)
    loading.result(60)
    return first


def test_a_worker_that_ends_while_it_loads_the_first_version_does_not_end_the_start(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads = Child.load, []

    def end_the_first(child: Child, *given: Any) -> Facts:
        loads.append(child.pid)
        if len(loads) == 1:
            child.kill()
        return load(child, *given)

    monkeypatch.setattr(Child, "load", end_the_first)
    made = Started(repository, 2)
    try:
        made.follow()
        assert made.list_versions() == {("1",)}
        assert len(made.ended) == 1
    finally:
        made.group.kill()


def test_a_version_that_ends_workers_when_they_are_started_again_is_replaced(
    started: Started, repository: Path
) -> None:
    models, group = started.models, started.group
    publish(repository, "colours", colour_artifact(("rot", "grün", "blau")))
    refresh(models)
    assert group.wait_until_published(30)
    reads: list[int] = []

    def read(state: State, version: FileVersion) -> bytes:
        reads.append(group.list_processes()[0])
        return endless_loop() if version[1] == "2" else state.artifacts[version].read()

    with patch.object(State, "read", read):
        os.kill(group.list_processes()[0], signal.SIGKILL)
        for ends in (1, 2):
            wait_until(lambda ends=ends: len(reads) == ends and group._children[1].channel._open)  # type: ignore[misc]
            os.kill(reads[-1], signal.SIGKILL)
        wait_until(lambda: group.restarts == 3 and group.is_ready())
    assert started.list_versions() == {("1",)}
    newest = models.list_entries()[-1]
    assert (newest.version, newest.state, newest.failed) == ("2", "UNAVAILABLE", True)
    assert "workers ended twice while they loaded colours/2" in newest.reason


def test_a_worker_without_a_model_takes_no_connections(started: Started, repository: Path) -> None:
    models, group = started.models, started.group
    reads: list[int] = []

    def read(state: State, version: FileVersion) -> bytes:
        reads.append(group.list_processes()[0])
        return endless_loop()

    with patch.object(State, "read", read):
        os.kill(group.list_processes()[0], signal.SIGKILL)
        for ends in (1, 2):
            wait_until(lambda ends=ends: len(reads) == ends and group._children[1].channel._open)  # type: ignore[misc]
            os.kill(reads[-1], signal.SIGKILL)
        wait_until(lambda: group._children[1].lacks)
    assert not group._children[1].is_listening
    assert group.count_ready() == 1
    publish(repository, "colours", colour_artifact(("rot", "grün", "blau")))
    refresh(models)
    wait_until(group.is_ready)
    assert {versions[-1] for versions in started.list_versions()} == {"2"}


def test_a_worker_that_starts_later_loads_versions_whose_files_are_gone(started: Started, repository: Path) -> None:
    models, group = started.models, started.group
    withdrawn = repository / ".withdrawn"
    (repository / "colours").rename(withdrawn)
    (withdrawn / "1" / "model.onnx").unlink()
    refresh(models)
    os.kill(group.list_processes()[1], signal.SIGKILL)
    wait_until(lambda: group.restarts == 1 and group.is_ready())
    assert started.list_versions() == {("1",)}


def test_a_version_that_is_not_served_any_more_is_released(started: Started) -> None:
    models, group = started.models, started.group
    contents = colour_artifact(("rot", "grün", "blau"))
    facts = group.take(("colours", "2", f"sha256:{hashlib.sha256(contents).hexdigest()}"), contents)
    late = (facts.name, facts.version, facts.digest)
    for may_follow in (True, False):
        state = replace(State.of(models, models.list_entries()), arrived=frozenset({late} if may_follow else ()))
        group.publish(state)
        assert group.wait_until_published(WAIT_S)
        serve_late = {"served": {"colours": [late]}, "entries": [], "pending": [late], "partial": False}
        for child in group._children.values():
            assert child.channel.ask("put", serve_late)[0]["missing"] == ([] if may_follow else [[*late]])


def test_workers_that_were_drained_end_when_they_are_killed(repository: Path) -> None:
    made = Started(repository, 2, limits=Limits(lame_duck=0, grace=1))
    try:
        made.follow()
        assert all(made.group.drain(WAIT_S).values())
        assert made.ended == []
        made.group.kill()
        wait_until(lambda: sorted(made.ended) == [1, 2])
    finally:
        made.group.kill()


def test_a_worker_that_hangs_is_killed_and_started_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.workers.child.CHECK_S", 0.5)
    made = Started(repository, 1)
    try:
        made.follow()
        assert made.group.check(WAIT_S) is not None  # also in a server without metrics
        [stopped] = made.group.list_processes()
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: stopped not in made.group.list_processes() and made.group.is_ready())
    finally:
        made.group.kill()
    assert "worker 1 does not answer its health checks, and is killed" in caplog.text
    assert "it ended by SIGKILL" in caplog.text


def test_an_error_of_a_worker_ends_the_start(repository: Path) -> None:
    made = Started(repository, 1, provider="cuda")
    try:
        with pytest.raises(ProviderUnavailable, match="CUDA"):
            made.follow()
    finally:
        made.group.kill()


def record_delays(count: int) -> tuple[WorkerGroup, list[float]]:
    """Start the only worker of a group again and again, without waiting; return the group, and the delays."""
    group = WorkerGroup(
        Settings(1, {}, 1.0, 2, 0), lambda kind, message, data: ({}, b""), lambda *why: None, lambda number: None
    )
    delays: list[float] = []

    def wait(delay_s: float) -> None:
        delays.append(delay_s)
        if len(delays) == count:
            group.kill()

    with patch.object(group._stopping, "wait", wait):
        group.start()
        wait_until(lambda: len(delays) == count)
    return group, delays


def test_a_worker_that_cannot_start_is_tried_again_ever_later_and_ends_the_start() -> None:
    with patch("serving.workers.group.Child", side_effect=WorkerUnavailable("no more processes")):
        group, delays = record_delays(11)
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    with pytest.raises(WorkerUnavailable, match="no more processes"):
        group.wait_until_ready(threading.Event())


@pytest.mark.parametrize(
    ("limit", "seconds", "delays"),
    [
        ("LONG_LIFE_S", 0.0, [0.0, 0.0, 0.0, 0.0, 0.0]),
        ("SHORT_LIFE_S", 0.0, [0.1, 0.2, 0.4, 0.5, 0.5]),
        ("SHORT_LIFE_S", 60.0, [0.1, 0.2, 0.4, 0.8, 1.6]),
    ],
)
def test_a_worker_that_ends_soon_after_its_start_is_started_again_ever_later(
    limit: str, seconds: float, delays: list[float]
) -> None:
    with (
        patch("serving.workers.group.Child"),
        patch(f"serving.workers.group.{limit}", seconds),
        patch.object(WorkerGroup, "_bring_up"),
    ):
        assert record_delays(len(delays))[1] == delays
