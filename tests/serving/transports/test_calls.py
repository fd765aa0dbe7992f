"""Open calls: late messages and unread replies are ended; running calls and idle streams are not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from evalmode.errors import MessageLate, ServerLeaving, StreamsFull
from evalmode.runtime.model import ImageClassifier
from serving.transports.calls import IDLE, RECEIVING, RUNNING, SENDING, Calls, OpenCall
from tests.serving.conftest import classify_by, listen, wait_until

TIMEOUT_S, PATH = 20, "/package.Service/Method"


class Context:
    """The context of a call, as grpcio passes it."""

    def __init__(self, connection: str = "a", remaining_s: float | None = None) -> None:
        self._connection = connection
        self._remaining_s = remaining_s

    def peer(self) -> str:
        return self._connection

    def time_remaining(self) -> float | None:
        return self._remaining_s


class Scene:
    """Open calls whose handlers wait until they are cancelled."""

    def __init__(self) -> None:
        self.calls = Calls(TIMEOUT_S)
        self.handlers: dict[OpenCall, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()

    def open(self, state: str, age_s: float = 0.0, connection: str = "a", remaining_s: float | None = None) -> OpenCall:
        opened: list[OpenCall] = []

        async def handle() -> None:
            opened.append(self.calls.open(Context(connection, remaining_s), self._loop, PATH))
            await asyncio.Event().wait()

        task = self._loop.create_task(handle())
        self.turn()
        [call] = opened
        call.enter(state)
        call.since -= age_s
        self.handlers[call] = task
        return call

    def turn(self) -> None:
        """Run the event loop until its tasks wait."""
        for _ in range(5):
            self._loop.run_until_complete(asyncio.sleep(0))

    def cancelled(self, call: OpenCall) -> bool:
        """Whether the handler of a call was cancelled."""
        self.turn()
        return self.handlers[call].cancelled()

    def leave(self, call: OpenCall) -> None:
        """End the handler of a call."""
        self.handlers[call].cancel()
        self.turn()

    def close(self) -> None:
        for call in self.handlers:
            self.leave(call)
        self._loop.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("state", "age_s", "error", "closed"),
    [
        (RECEIVING, TIMEOUT_S + 1, MessageLate, {}),
        (SENDING, TIMEOUT_S + 1, None, {"a": "the client did not read a reply within 20 s"}),
        (RUNNING, 1e6, None, {}),
        (IDLE, 1e6, None, {}),
        (RECEIVING, TIMEOUT_S - 5, None, {}),
        (SENDING, TIMEOUT_S - 5, None, {}),
    ],
)
def test_late_messages_end_their_call_and_late_replies_close_their_connection(
    scene: Scene, state: str, age_s: float, error: type[Exception] | None, closed: dict[str, str]
) -> None:
    call = scene.open(state, age_s)
    assert scene.calls.sweep() == closed
    assert scene.cancelled(call) == (error is not None)
    assert type(call.error) is (error or type(None))


def test_the_error_of_a_late_message_states_the_timeout(scene: Scene) -> None:
    call = scene.open(RECEIVING, TIMEOUT_S + 1)
    scene.calls.sweep()
    assert str(call.error) == "no message arrived within 20 s: send it at once"


def test_the_timeout_starts_again_with_each_state(scene: Scene) -> None:
    for before, after in ((RECEIVING, SENDING), (SENDING, RECEIVING)):
        call = scene.open(before, TIMEOUT_S + 1)
        call.enter(after)
        assert not scene.calls.sweep()
        assert not scene.cancelled(call)


def test_each_connection_with_late_replies_is_closed(scene: Scene) -> None:
    for connection in "aabb":
        scene.open(SENDING, TIMEOUT_S + 1, connection)
    scene.open(SENDING, 0, "c")
    assert scene.calls.sweep().keys() == {"a", "b"}


def test_with_too_many_unread_replies_the_connection_with_the_most_is_closed(scene: Scene) -> None:
    calls = [scene.open(SENDING, connection=connection) for connection in "baaab"]
    calls += [scene.open(RUNNING, connection="c") for _ in range(9)]
    with patch("serving.transports.calls.MAX_SENDING", 5):
        assert not scene.calls.sweep()
    with patch("serving.transports.calls.MAX_SENDING", 4):
        assert scene.calls.sweep() == {"a": "5 replies have not been read, the limit is 4; 3 are on this connection"}
    assert not any(scene.cancelled(call) for call in calls)


def test_a_call_is_counted_until_its_handler_ends(scene: Scene) -> None:
    call = scene.open(RUNNING)
    scene.open(IDLE)
    calls = scene.calls
    assert (calls.count(RUNNING), calls.count(IDLE), calls.count(RUNNING, IDLE, SENDING)) == (1, 1, 2)
    assert not call.cancelled()
    scene.leave(call)
    assert call.cancelled()
    assert (calls.count(RUNNING), calls.count(IDLE)) == (0, 1)


@pytest.mark.parametrize(("state", "at_once"), [(RECEIVING, True), (IDLE, True), (RUNNING, False), (SENDING, False)])
def test_a_call_that_waits_for_its_client_ends_at_once_and_others_after_their_reply(
    scene: Scene, state: str, at_once: bool
) -> None:
    call, error = scene.open(state), ServerLeaving("leaving")
    call.end(error)
    assert scene.cancelled(call) == at_once
    assert call.error is error


def test_a_call_ends_with_the_first_error(scene: Scene) -> None:
    call, first = scene.open(RUNNING), StreamsFull("full")
    call.end(first)
    call.enter(IDLE)
    call.end(ServerLeaving("leaving"))
    assert call.error is first
    assert not scene.cancelled(call)  # it was ended already


def test_the_deadline_is_infinite_without_one(scene: Scene) -> None:
    call = scene.open(RUNNING, remaining_s=60)
    assert call.deadline - call.arrived == pytest.approx(60)
    assert scene.open(RUNNING).deadline == math.inf


def test_connections_that_wait_for_a_message_are_listed(scene: Scene) -> None:
    for number, state in enumerate((RECEIVING, IDLE, RUNNING, SENDING)):
        scene.open(state, 10, f"late {number}")
        scene.open(state, 0, f"early {number}")
    scene.open(IDLE, 0, "early 0")
    waiting, open_now = scene.calls.find_connections(100)
    assert waiting == {f"{when} {number}": 100 for when in ("late", "early") for number in range(2)} | {"early 0": 200}
    assert open_now == {f"{when} {number}" for when in ("late", "early") for number in range(4)}


def test_a_server_continues_to_check_calls_after_a_check_that_failed(
    model: ImageClassifier, caplog: pytest.LogCaptureFixture
) -> None:
    checks: list[None] = []

    def check(calls: Calls) -> None:
        checks.append(None)
        if len(checks) == 1:
            raise ValueError("once")

    with patch("serving.transports.grpcio.SWEEP_S", 0.001), patch.object(Calls, "sweep", check):
        server = listen(classify_by(model))
        wait_until(lambda: len(checks) > 3)
        server.drain(0)
    assert caplog.text.count("calls could not be checked") == 1
