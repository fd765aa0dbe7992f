"""A channel: requests in both directions, errors, and an end of the other side."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from evalmode.errors import ModelNotFound
from serving.workers.channel import _FRAME, Channel, ChannelClosed, ChannelLate, Message
from tests.serving.conftest import WAIT_S, spawn, wait_until


class Pair:
    """Two connected channels. The answer of each side to ``ask`` is what it asks of the other side.

    Attributes:
        here: One side.
        there: The other side.
        go: Lets requests of the kind ``wait`` end.
    """

    def __init__(self) -> None:
        one, other = socket.socketpair()
        self.go = threading.Event()
        self.here, self.there = Channel(one, self.answer_here), Channel(other, self.answer_there)
        for channel in (self.here, self.there):
            channel.start()

    def answer_here(self, kind: str, message: Message, data: bytes) -> tuple[Message, bytes]:
        return {"from": "here", **message}, data[::-1]

    def answer_there(self, kind: str, message: Message, data: bytes) -> tuple[Message, bytes]:
        if kind == "wait":
            assert self.go.wait(WAIT_S)
        if kind == "refuse":
            raise ModelNotFound("no such model", field="name", model="x")
        if kind == "fail":
            raise KeyError("fault")
        if kind == "back":
            return self.there.ask("echo", message, data, WAIT_S)
        return {"from": "there", **message}, data


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.go.set()
    made.here.close()
    made.there.close()


def test_an_answer_belongs_to_its_request(pair: Pair) -> None:
    waiting = spawn(pair.here.ask, "wait", {"number": 1}, b"1" * 3_000_000, WAIT_S)
    assert pair.here.ask("echo", {"number": 2}, b"2", WAIT_S) == ({"from": "there", "number": 2}, b"2")
    assert not waiting.done()
    pair.go.set()
    assert waiting.result(WAIT_S) == ({"from": "there", "number": 1}, b"1" * 3_000_000)


def test_a_request_may_need_an_answer_of_the_side_that_asks(pair: Pair) -> None:
    assert pair.here.ask("back", {"number": 3}, b"abc", WAIT_S) == ({"from": "here", "number": 3}, b"cba")


def test_a_request_for_which_no_thread_can_start_fails_alone(pair: Pair) -> None:
    no_more = RuntimeError("can't start new thread")
    with (
        patch("serving.workers.channel.threading.Thread", side_effect=no_more),
        pytest.raises(RuntimeError, match="can't start new thread"),
    ):
        pair.here.ask("echo", timeout_s=WAIT_S)
    assert pair.here.ask("echo", {"number": 2}, b"2", WAIT_S) == ({"from": "there", "number": 2}, b"2")


def test_errors_are_raised_where_they_were_asked_for(pair: Pair) -> None:
    with pytest.raises(ModelNotFound, match="no such model") as caught:
        pair.here.ask("refuse", timeout_s=WAIT_S)
    assert (caught.value.field, caught.value.facts) == ("name", {"model": "x"})
    with pytest.raises(RuntimeError, match="KeyError"):
        pair.here.ask("fail", timeout_s=WAIT_S)


def test_an_answer_that_is_late_is_dropped(pair: Pair) -> None:
    with pytest.raises(ChannelLate):
        pair.here.ask("wait", timeout_s=0.01)
    pair.go.set()
    assert pair.here.ask("echo", {}, b"", WAIT_S)[0] == {"from": "there"}
    assert pair.here._open == {}


def test_requests_end_with_the_other_side(pair: Pair) -> None:
    waiting = spawn(pair.here.ask, "wait")
    while not pair.here._open:
        pass
    pair.there.close()
    with pytest.raises(ChannelClosed):
        waiting.result(WAIT_S)
    assert pair.here.closed.wait(WAIT_S)
    with pytest.raises(ChannelClosed):
        pair.here.ask("echo")


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"{", id="not JSON"),
        pytest.param(b'{"kind": "echo"}', id="neither a request nor an answer"),
        pytest.param(b'{"answer": 0, "error": {"name": "NoSuchError", "text": ""}}', id="an unknown error"),
    ],
)
def test_what_is_not_a_frame_closes_the_channel_and_is_logged(
    pair: Pair, header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = spawn(pair.here.ask, "wait")
    wait_until(lambda: pair.here._open)
    pair.there._connection.sendall(_FRAME.pack(len(header), 0) + header)
    with pytest.raises(ChannelClosed):
        waiting.result(WAIT_S)
    assert pair.here.closed.wait(WAIT_S)
    assert pair.there.closed.wait(WAIT_S)
    [record] = caplog.records
    assert "the channel is closed" in record.message
    assert record.exc_info
