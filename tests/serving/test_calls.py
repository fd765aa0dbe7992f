"""The open calls: what takes too long is ended, what may take its time is not, and excess answers are dropped."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest

from serving.transports.calls import IDLE, RECEIVING, RUNNING, SENDING, Calls, OpenCall
from tests.serving.conftest import wait_until

TIMEOUT_S = 20


class Context:
    """A call as grpcio shows it."""

    def __init__(self, connection: str = "ipv4:127.0.0.1:1", active: bool = True) -> None:
        self.connection = connection
        self.active = active
        self.cancelled = False
        self.ends: list[Callable[[], object]] = []

    def peer(self) -> str:
        return self.connection

    def add_callback(self, callback: Callable[[], object]) -> bool:
        if self.active:
            self.ends.append(callback)
        return self.active

    def cancel(self) -> None:
        self.cancelled = True

    def time_remaining(self) -> None:
        return None


@pytest.fixture
def calls() -> Calls:
    return Calls(TIMEOUT_S)


def open_call(calls: Calls, state: str, age_s: float = 0.0, connection: str = "a") -> tuple[Context, OpenCall]:
    context = Context(connection)
    call = calls.open(context)
    call.enter(state)
    call.since -= age_s
    return context, call


@pytest.mark.parametrize(
    ("state", "age_s", "ended"),
    [
        (RECEIVING, TIMEOUT_S + 1, True),
        (SENDING, TIMEOUT_S + 1, True),
        (RUNNING, 1e6, False),
        (IDLE, 1e6, False),
        (RECEIVING, TIMEOUT_S - 5, False),
        (SENDING, TIMEOUT_S - 5, False),
    ],
)
def test_only_late_receivers_and_late_senders_are_ended(calls: Calls, state: str, age_s: float, ended: bool) -> None:
    context, _ = open_call(calls, state, age_s)
    calls.sweep()
    assert context.cancelled == ended


def test_a_call_that_goes_on_has_its_time_again(calls: Calls) -> None:
    context, call = open_call(calls, RECEIVING, TIMEOUT_S + 1)
    call.enter(SENDING)
    calls.sweep()
    assert not context.cancelled


def test_of_too_many_answers_that_nobody_takes_the_oldest_of_the_greediest_connection_go(calls: Calls) -> None:
    contexts = [open_call(calls, SENDING, connection=name)[0] for name in "baaaa"]
    running = open_call(calls, RUNNING)[0]
    with patch("serving.transports.calls.MAX_SENDING", 3):
        calls.sweep()
    assert [context.cancelled for context in contexts] == [False, True, True, False, False]
    assert not running.cancelled


def test_a_call_is_counted_until_it_has_ended(calls: Calls) -> None:
    context, call = open_call(calls, RUNNING)
    open_call(calls, IDLE)
    assert (calls.count(RUNNING), calls.count(IDLE), calls.count(RUNNING, IDLE, SENDING)) == (1, 1, 2)
    for end in context.ends:
        end()
    assert call.cancelled()
    assert (calls.count(RUNNING), calls.count(IDLE)) == (0, 1)


def test_a_call_that_had_ended_before_it_was_seen_is_over_and_not_counted(calls: Calls) -> None:
    call = calls.open(Context(active=False))
    assert call.over
    assert calls.count(RECEIVING) == 0


def test_whoever_waits_is_woken_at_the_end_and_at_once_where_it_is_over(calls: Calls) -> None:
    woken: list[str] = []
    context, call = open_call(calls, RUNNING)
    call.wake_on_cancel(lambda: woken.append("first"))
    call.wake_on_cancel(lambda: woken.append("of the request that runs now"))
    for end in context.ends:
        end()
    call.wake_on_cancel(lambda: woken.append("too late"))
    assert woken == ["of the request that runs now", "too late"]


def test_connections_that_wait_for_a_message_are_named(calls: Calls) -> None:
    for number, state in enumerate((RECEIVING, IDLE, RUNNING, SENDING)):
        open_call(calls, state, 10, f"late {number}")
        open_call(calls, state, 0, f"early {number}")
    waiting, open_now = calls.find_connections(100)
    assert waiting == {f"{when} {number}": 100 for when in ("late", "early") for number in range(2)}
    assert open_now == {f"{when} {number}" for when in ("late", "early") for number in range(4)}


def test_it_looks_again_and_again_even_after_a_look_that_failed(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    looks: list[None] = []

    def look() -> None:
        looks.append(None)
        if len(looks) == 1:
            raise ValueError("once")

    with patch("serving.transports.calls.SWEEP_S", 0.001):
        calls.start(look)
        context, call = open_call(calls, RECEIVING)
        wait_until(lambda: len(looks) > 3)
        call.since -= TIMEOUT_S + 1
        wait_until(lambda: context.cancelled)
        calls.stop()
    assert "calls could not be looked at" in caplog.text
