"""Places are limited; the connection with the most gives one to a connection with fewer."""

from __future__ import annotations

from typing import Any

import pytest

from evalmode.errors import RequestError, StreamsFull
from serving.transports.places import Places


class Stream:
    """A call that records the errors that end it."""

    def __init__(self, connection: str) -> None:
        self.connection = connection
        self.errors: list[RequestError] = []

    def end(self, error: RequestError) -> None:
        self.errors.append(error)


def make(limit: int) -> Places:
    return Places(limit, lambda: StreamsFull("full"))


def enter(places: Places, connections: str) -> list[Any]:
    streams: list[Any] = [Stream(connection) for connection in connections]
    for stream in streams:
        places.enter(stream)
    return streams


def test_the_connection_with_the_most_places_gives_up_its_oldest() -> None:
    places = make(4)
    one, two, three, four = enter(places, "baaa")
    [new] = enter(places, "c")
    assert [type(error) for error in two.errors] == [StreamsFull]
    assert not any(stream.errors for stream in (one, three, four, new))
    assert places.list_calls() == [one, three, four, new]
    assert places.taken == 4


@pytest.mark.parametrize(("held", "connection"), [("aab", "b"), ("ab", "c"), ("aaa", "a"), ("aabb", "b")])
def test_a_call_is_refused_if_no_connection_has_two_more_places(held: str, connection: str) -> None:
    places = make(len(held))
    streams = enter(places, held)
    with pytest.raises(StreamsFull):
        enter(places, connection)
    assert sorted(places.list_calls(), key=id) == sorted(streams, key=id)
    assert not any(stream.errors for stream in streams)
    assert places.taken == len(held)


def test_a_place_is_free_again_once_its_call_has_ended() -> None:
    places = make(1)
    for _ in range(3):
        [stream] = enter(places, "a")
        assert places.taken == 1
        places.leave(stream)
        assert (places.taken, places.list_calls()) == (0, [])
    assert not places._held  # connections without calls are forgotten


def test_the_place_of_an_evicted_call_is_not_given_back_twice() -> None:
    places = make(2)
    first, second = enter(places, "aa")
    [held] = enter(places, "b")
    for stream in (first, second, second):
        places.leave(stream)
    assert places.list_calls() == [held]
    assert places.taken == 1
    enter(places, "c")
    assert places.taken == 2


def test_a_refused_call_gives_no_place_back() -> None:
    places = make(1)
    enter(places, "a")
    refused: Any = Stream("b")
    with pytest.raises(StreamsFull):
        places.enter(refused)
    places.leave(refused)
    assert places.taken == 1
