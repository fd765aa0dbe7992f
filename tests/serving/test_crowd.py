"""Threads that are scarce go to connections in turns, to that with the fewest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

import pytest

from serving.transports.calls import Calls, OpenCall
from serving.transports.crowd import Arrival, Crowd
from tests.serving.conftest import wait_until
from tests.serving.test_calls import Context


class Scene:
    """A crowd, the lane whose threads it gives, and what became of calls, whose names begin with their connection's."""

    def __init__(self) -> None:
        self.free = self.events = self.dealt_with = 0
        self.threads = self  # of the lane
        self.on_free: Callable[[], object] = lambda: None
        self.ran: list[str] = []
        self.refused: list[str] = []
        self.contexts: dict[str, Context] = {}
        self.calls = Calls(20)
        self.receiving = ExitStack()
        self.crowd = Crowd(self)
        dispatch = self.crowd._dispatch

        def count() -> None:
            dispatch()
            self.dealt_with += 1

        self.crowd._dispatch = count

    def take(self) -> bool:
        if not self.free:
            return False
        self.free -= 1
        return True

    def submit(self, function: Callable[[], None]) -> None:
        function()

    def open(self, name: str) -> OpenCall:
        self.contexts[name] = Context(name[0])
        return self.calls.open(self.contexts[name])

    def receive(self, *names: str) -> None:
        """Calls that have a thread and wait for their message."""
        for name in names:
            call = self.open(name)
            self.crowd.begin_receiving(call)
            self.receiving.callback(self.crowd.end_receiving, call)

    def enter(self, *names: str, over: bool = False) -> None:
        """Calls that wait for a thread."""
        for name in names:
            call = self.open(name)
            call.over = over
            self.events += 1
            self.crowd.enter(Arrival(call, partial(self.ran.append, name), partial(self.refused.append, name)))
            wait_until(lambda: self.dealt_with == self.events)

    def give(self) -> None:
        """One more thread is free."""
        self.free += 1
        self.events += bool(self.crowd._waiting)
        self.on_free()
        wait_until(lambda: self.dealt_with == self.events)

    @property
    def cancelled(self) -> list[str]:
        return [name for name, context in self.contexts.items() if context.cancelled]


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.receiving.close()


def test_a_free_thread_is_given_at_once(scene: Scene) -> None:
    scene.free = 2
    scene.enter("a1", "b1", "c1")
    assert scene.ran == ["a1", "b1"]
    scene.give()
    assert scene.ran == ["a1", "b1", "c1"]
    assert scene.refused == scene.cancelled == []


def test_the_connection_with_the_fewest_goes_first_however_late_it_came(scene: Scene) -> None:
    scene.receive("a1", "b1")
    scene.enter("a2", "a3", "a4", "b2", "c1")
    scene.receive("b3")
    assert scene.ran == []
    for _ in range(3):
        scene.give()
    assert scene.ran == ["c1", "a2", "a3"]
    assert scene.cancelled == []


def test_one_connection_s_calls_go_in_their_order(scene: Scene) -> None:
    scene.enter("a1", "a2", "a3")
    for _ in range(3):
        scene.give()
    assert scene.ran == ["a1", "a2", "a3"]


def test_where_none_is_free_the_oldest_call_of_a_connection_with_two_more_gives_its_own(scene: Scene) -> None:
    scene.receive("b1", "a1", "a2")
    scene.enter("b2")
    assert scene.cancelled == []  # it would only be the other way round
    scene.enter("c1")
    assert scene.cancelled == ["a1"]


def test_a_call_that_has_its_message_is_not_cancelled_for_another(scene: Scene) -> None:
    scene.receive("a1", "a2", "a3")
    scene.receiving.close()
    scene.enter("b1")
    assert scene.cancelled == []
    assert scene.crowd._receiving == {}


def test_a_call_that_has_ended_is_skipped(scene: Scene) -> None:
    scene.enter("a1", over=True)
    scene.enter("b1")
    scene.give()
    assert scene.ran == ["b1"]
    assert scene.crowd._waiting == {}


def test_where_too_many_wait_the_next_is_refused(scene: Scene) -> None:
    with patch("serving.transports.crowd.MAX_WAITING", 2):
        scene.enter("a1", "a2", "b1")
        assert scene.refused == ["b1"]
        scene.give()
        scene.enter("b2")
    assert scene.refused == ["b1"]
    assert scene.ran == ["a1"]


def test_calls_that_have_ended_do_not_count_among_those_that_wait(scene: Scene) -> None:
    with patch("serving.transports.crowd.MAX_WAITING", 3):
        scene.enter("a1", "a2", "c1")
        for call in [arrival.call for arrival in scene.crowd._waiting["a"]]:
            call.over = True
        scene.enter("b1")
    assert scene.refused == []
    assert {name: len(calls) for name, calls in scene.crowd._waiting.items()} == {"c": 1, "b": 1}


def test_a_call_that_fails_to_run_does_not_stop_the_others(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("no thread")

    scene.free = 1
    scene.crowd.enter(Arrival(scene.open("a1"), fail, fail))
    wait_until(lambda: "a call could not be given a thread" in caplog.text)
    scene.free = 1
    scene.enter("b1")
    assert scene.ran == ["b1"]
