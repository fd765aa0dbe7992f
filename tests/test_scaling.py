"""The plan of benchmarks/speed/scaling.py is the arithmetic that its document states."""

from __future__ import annotations

import pytest

from benchmarks.speed import scaling

REPLICA = scaling.Replica(cpu_s=0.008, image_bytes=40_000, memory_bytes=2**29, cpus=4, busy=0.5)


def test_processors_follow_from_the_processor_time_of_a_request() -> None:
    assert REPLICA.rate == 250
    found = scaling.plan(1_000, REPLICA)
    assert (found.replicas, found.cpus, found.memory_gib) == (4, 16, 2)
    assert found.received_gbit == pytest.approx(0.324)
    assert found.sent_gbit == pytest.approx(0.008)


def test_a_part_of_a_replica_is_a_replica_and_there_are_at_least_two() -> None:
    assert scaling.plan(1_001, REPLICA).replicas == 5
    assert scaling.plan(1, REPLICA).replicas == 2


def test_the_largest_load_gives_the_processor_time() -> None:
    loads = [{"rate": 100, "server_cpu_us": 9000}, {"rate": 250, "server_cpu_us": 8000}]
    assert scaling.read_cpu_s({"loads": loads}) == 0.008
    with pytest.raises(SystemExit, match="on the server's machine"):
        scaling.read_cpu_s({"loads": [{"rate": 1, "server_cpu_us": None}]})


def test_impossible_values_are_rejected() -> None:
    with pytest.raises(ValueError, match="above 0"):
        scaling.Replica(0.008, 1, 1, cpus=4, busy=0)
