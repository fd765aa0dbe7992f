"""Limits that several workers share."""

from __future__ import annotations

import pytest

from evalmode.errors import StreamsFull
from serving.engine.shared_limits import Alone, SharedLimit
from serving.transports.places import Places
from serving.workers.counters import SharedCounters, create_counters
from serving.workers.shared_count import SharedCount
from tests.serving.transports.test_places import enter

NAME = "streams"


@pytest.fixture
def counts() -> tuple[SharedCount, SharedCount]:
    """The counts of two workers."""
    memory = create_counters(2)
    first, second = (SharedCount(SharedCounters(memory, 2, worker), NAME) for worker in range(2))
    return first, second


@pytest.mark.parametrize(
    ("mine", "other", "shares"),
    [(4, 6, (0, 0)), (6, 6, (1, 1)), (12, 0, (2, 0)), (0, 12, (0, 2)), (11, 1, (2, 1)), (30, 10, (23, 8))],
)
def test_an_excess_is_divided_between_the_workers(
    counts: tuple[SharedCount, SharedCount], mine: int, other: int, shares: tuple[int, int]
) -> None:
    first, second = (SharedLimit(10, count) for count in counts)
    second.measure_excess(other)
    assert first.measure_excess(mine) == shares[0]
    assert second.measure_excess(other) == shares[1]


def test_a_server_of_one_process_has_the_whole_limit() -> None:
    limit = SharedLimit(10, Alone(NAME))
    assert [limit.measure_excess(mine) for mine in (0, 10, 13)] == [0, 0, 3]


def test_places_are_those_of_all_workers(counts: tuple[SharedCount, SharedCount]) -> None:
    first, second = (Places(3, lambda: StreamsFull("full"), count) for count in counts)
    held = enter(first, "ab")
    enter(second, "c")
    for places, connection in ((first, "d"), (second, "c")):
        with pytest.raises(StreamsFull):
            enter(places, connection)
    first.leave(held[0])
    enter(second, "c")
    assert (first.taken, second.taken) == (1, 2)
    enter(second, "d")  # the connection with two places gives one up
    assert (first.taken, second.taken) == (1, 2)


def test_a_worker_without_a_place_is_refused_if_all_are_taken_elsewhere(
    counts: tuple[SharedCount, SharedCount],
) -> None:
    first, second = (Places(2, lambda: StreamsFull("full"), count) for count in counts)
    enter(first, "ab")
    with pytest.raises(StreamsFull):
        enter(second, "c")
