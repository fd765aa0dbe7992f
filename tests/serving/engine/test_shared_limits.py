"""Limits that several workers share."""

from __future__ import annotations

from functools import partial

import pytest

from evalmode.errors import StreamsFull
from serving.engine.shared_limits import Alone, SharedLimit, SharedSlots
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


def share_slots(slots: int, workers: int) -> list[SharedSlots]:
    """The slots of a server, as each of its workers sees them."""
    memory = create_counters(workers)
    counters = [SharedCounters(memory, workers, worker) for worker in range(workers)]
    return [SharedSlots(slots, "slots", partial(SharedCount, one)) for one in counters]


def take_all(slots: SharedSlots) -> int:
    """Take every slot that is free, and return how many this worker has."""
    while slots.is_free():
        slots.take()
    return slots.busy


@pytest.mark.parametrize(("workers", "shares"), [(1, [8]), (2, [4, 4]), (3, [3, 3, 2]), (8, [1] * 8)])
def test_workers_that_wait_get_equal_shares_of_the_slots(workers: int, shares: list[int]) -> None:
    first, *others = share_slots(8, workers)
    assert take_all(first) == 8
    for other in others:
        assert take_all(other) == 1
    each = [first, *others]
    for _ in range(8):
        for one in each:  # a task of it ends; it looks again first
            one.note_waiting(True)
            one.give_back()
            take_all(one)
    assert [one.busy for one in each] == shares


def test_a_worker_takes_all_slots_again_once_no_other_one_waits() -> None:
    first, second = share_slots(8, 2)
    take_all(second)
    first.note_waiting(True)
    assert take_all(first) == 1
    for _ in range(8):
        second.give_back()
    assert (take_all(first), take_all(second)) == (8, 1)
    first.note_waiting(False)
    for _ in range(7):
        first.give_back()
    assert (take_all(second), take_all(first)) == (7, 1)
