"""Large messages of all connections are spread over time; small messages never wait."""

from __future__ import annotations

import asyncio

import pytest

from serving.transports.pacing import BYTES_PER_S, LARGE_BYTES, MAX_SENDERS, MAX_WAIT_S, Pacing

INFER, CHECK = "/inference.GRPCInferenceService/ModelInfer", "/grpc.health.v1.Health/Check"
A = ("ipv4:10.0.0.7:51200", INFER)


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def paced(now: list[float]) -> Pacing:
    return Pacing(lambda: now[0])


def test_a_connection_that_is_new_or_sends_small_messages_never_waits(paced: Pacing) -> None:
    for _ in range(100):
        assert paced.take_turn(A) == 0
        paced.note(A, LARGE_BYTES - 1)


def test_large_messages_of_all_connections_share_one_rate(paced: Pacing) -> None:
    for name in "abc":
        paced.note((name, INFER), 10 * LARGE_BYTES)
    each_s = 10 * LARGE_BYTES / BYTES_PER_S
    assert [paced.take_turn((name, INFER)) for name in "abca"] == pytest.approx([0, each_s, 2 * each_s, 3 * each_s])


def test_after_enough_time_no_message_waits(paced: Pacing, now: list[float]) -> None:
    paced.note(A, LARGE_BYTES)
    assert paced.take_turn(A) == 0
    assert paced.take_turn(A) > 0
    now[0] += 60
    assert paced.take_turn(A) == 0


def test_no_wait_is_longer_than_the_limit(paced: Pacing) -> None:
    paced.note(A, BYTES_PER_S)
    assert max(paced.take_turn(A) for _ in range(100)) == MAX_WAIT_S


def test_after_a_small_message_a_connection_does_not_wait(paced: Pacing) -> None:
    paced.note(A, BYTES_PER_S)
    paced.take_turn(A)
    paced.note(A, 1)
    assert paced.take_turn(A) == 0


def test_a_bounded_number_of_connections_is_remembered(paced: Pacing) -> None:
    for number in range(MAX_SENDERS + 1):
        paced.note((str(number), INFER), BYTES_PER_S)
    paced.take_turn(("1", INFER))
    assert paced.take_turn(("0", INFER)) == 0
    assert paced.take_turn(("1", INFER)) > 0


def test_other_methods_of_the_connection_do_not_wait(paced: Pacing) -> None:
    paced.note(A, BYTES_PER_S)
    paced.take_turn(A)
    assert paced.take_turn((A[0], CHECK)) == 0
    assert paced.take_turn(A) > 0


def test_a_small_message_wakes_the_waiting_calls_of_its_connection() -> None:
    async def run() -> None:
        paced, other = Pacing(lambda: 100.0), ("ipv4:10.0.0.8:51200", INFER)
        for sender in (A, other):
            paced.note(sender, BYTES_PER_S)
        paced.take_turn(A)
        own = [asyncio.create_task(paced.wait(A)) for _ in range(2)]
        foreign = asyncio.create_task(paced.wait(other))
        await asyncio.sleep(0)
        assert not any(task.done() for task in (*own, foreign))
        paced.note(A, 1)
        await asyncio.gather(*own)
        assert not foreign.done()
        foreign.cancel()
        assert paced.take_turn(other) == 2  # the woken calls took no turn

    asyncio.run(run())
