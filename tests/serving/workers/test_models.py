"""The models of a worker change to a whole state at once, or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from evalmode.errors import DeadlineExpired, ServerLeaving
from evalmode.runtime.loading import DEFAULT_OPTIONS
from serving.services.loaded import Entry
from serving.workers.channel import Channel, Message
from serving.workers.models import WorkerModels
from tests.conftest import COLOURS, colour_artifact
from tests.serving.conftest import WAIT_S

GERMAN = ("rot", "grün", "blau")
Version = tuple[str, str, str]


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets the supervisor answer."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def supervisor(release: threading.Event) -> Iterator[tuple[Channel, Channel]]:
    """The channel of a worker, and that of its supervisor."""

    def answer(kind: str, message: Message, data: bytes) -> tuple[Message, bytes]:
        assert release.wait(WAIT_S)
        return {}, b""

    one, other = socket.socketpair()
    channels = Channel(one, answer), Channel(other, answer)
    for channel in channels:
        channel.start()
    yield channels
    for channel in channels:
        channel.close()


@pytest.fixture
def models(supervisor: tuple[Channel, Channel]) -> WorkerModels:
    return WorkerModels(DEFAULT_OPTIONS, supervisor[0])


def take(models: WorkerModels, version: int, labels: tuple[str, ...] = COLOURS) -> Version:
    facts = models.take("colours", str(version), colour_artifact(labels))
    return facts.name, facts.version, facts.digest


def put(
    models: WorkerModels, *versions: Version, pending: tuple[Version, ...] = (), partial: bool = False
) -> list[Version]:
    entries = [Entry(name, version, "READY", "") for name, version, _ in versions]
    return models.put({"colours": versions}, entries, pending, partial)


def list_loaded(models: WorkerModels) -> list[str]:
    return [model.version for model in models.loaded]


def test_a_state_with_a_missing_version_changes_nothing_until_it_is_loaded(models: WorkerModels) -> None:
    first = take(models, 1)
    assert put(models, first) == []
    missing = ("colours", "2", "sha256:0")
    assert put(models, missing, first) == [missing]
    assert list_loaded(models) == ["1"]
    assert [entry.version for entry in models.list_entries()] == ["1"]
    second = take(models, 2)
    assert list_loaded(models) == ["1"]
    assert put(models, second, first) == []
    assert list_loaded(models) == ["2", "1"]
    assert models.find("", "").version == "2"


def test_a_version_that_cannot_be_loaded_is_left_out(models: WorkerModels) -> None:
    first = take(models, 1)
    assert put(models, ("colours", "2", "sha256:0"), first, partial=True) == [("colours", "2", "sha256:0")]
    assert list_loaded(models) == ["1"]
    assert [(entry.version, entry.state) for entry in models.list_entries()] == [("2", "UNAVAILABLE"), ("1", "READY")]


def test_a_version_whose_file_has_changed_is_another_one(models: WorkerModels) -> None:
    old, new = take(models, 1), take(models, 1, GERMAN)
    assert put(models, old) == [old]  # it was replaced before it answered
    assert put(models, new) == []
    assert put(models, old) == [old]


def test_only_pending_versions_stay_loaded_without_answering(models: WorkerModels) -> None:
    first, second, third = (take(models, version) for version in (1, 2, 3))
    assert put(models, first, pending=(second,)) == []
    assert put(models, third) == [third]
    assert put(models, second) == []
    assert list_loaded(models) == ["2"]


def test_control_waits_for_the_supervisor(
    models: WorkerModels, supervisor: tuple[Channel, Channel], release: threading.Event
) -> None:
    with pytest.raises(DeadlineExpired, match="load of colours is not done yet"):
        models.load("colours", timeout_s=0.01)
    release.set()
    models.load("colours", timeout_s=WAIT_S)
    models.unload("colours")
    supervisor[1].close()
    assert supervisor[0].closed.wait(WAIT_S)
    with pytest.raises(ServerLeaving):
        models.unload("colours")
