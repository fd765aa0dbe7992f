"""Places are bounded in all, and the connection with the most gives one to a connection with less."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from serving.errors import RequestError, StreamsFull
from serving.transports.places import Places


class Stream:
    """A call that notes why it was evicted."""

    def __init__(self, connection: str) -> None:
        self.connection = connection
        self.evicted: list[RequestError] = []

    def evict(self, error: RequestError) -> None:
        self.evicted.append(error)


def make(limit: int) -> Places[Stream]:
    return Places(limit, lambda: StreamsFull("full"))


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def hold(stack: ExitStack, places: Places[Stream], connections: str) -> list[Stream]:
    streams = [Stream(connection) for connection in connections]
    for stream in streams:
        stack.enter_context(places.hold(stream))
    return streams


def test_the_greediest_connection_gives_back_its_oldest(stack: ExitStack) -> None:
    places = make(4)
    one, two, three, four = hold(stack, places, "baaa")
    [new] = hold(stack, places, "c")
    assert [type(error) for error in two.evicted] == [StreamsFull]
    assert not any(stream.evicted for stream in (one, three, four, new))
    assert places.list_holders() == [one, three, four, new]


@pytest.mark.parametrize(("held", "connection"), [("aab", "b"), ("ab", "c"), ("aaa", "a"), ("aabb", "b")])
def test_a_call_is_refused_where_no_connection_has_two_more(stack: ExitStack, held: str, connection: str) -> None:
    places = make(len(held))
    streams = hold(stack, places, held)
    with pytest.raises(StreamsFull), places.hold(Stream(connection)):
        raise AssertionError("held")
    assert places.list_holders() == streams
    assert not any(stream.evicted for stream in streams)


def test_a_place_is_free_again_however_its_call_ends() -> None:
    places = make(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="of the call"), places.hold(Stream("a")):
            raise ValueError("of the call")
    assert len(places) == 0


def test_the_place_of_an_evicted_call_is_not_given_back_twice(stack: ExitStack) -> None:
    places = make(2)
    evicted = ExitStack()
    hold(evicted, places, "aa")
    held = hold(stack, places, "b")
    evicted.close()
    assert places.list_holders() == held
