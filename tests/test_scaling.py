"""The plan of benchmarks/speed/scaling.py is the arithmetic that its document states."""

from __future__ import annotations

import pytest

from benchmarks.speed import scaling

REPLICA = scaling.Replica(cpu_s=0.008, request_bytes=40_000, memory_bytes=2**29, cpus=4, busy=0.5)


def test_processors_follow_from_the_processor_time_of_a_request() -> None:
    assert REPLICA.rate == 250
    found = scaling.plan(1_000, REPLICA)
    assert (found.replicas, found.cpus, found.memory_gib) == (4, 16, 2)
    assert found.received_gbit == pytest.approx(0.324)
    assert found.sent_gbit == pytest.approx(0.008)


def test_a_part_of_a_replica_is_a_replica_and_there_are_at_least_two() -> None:
    assert scaling.plan(1_001, REPLICA).replicas == 5
    assert scaling.plan(1, REPLICA).replicas == 2


def test_the_load_with_the_highest_rate_is_planned_with() -> None:
    loads = [
        {"rate": 100, "server_cpu_us": 9000, "server_memory_bytes": 2**28},
        {"rate": 250, "server_cpu_us": 8000, "server_memory_bytes": 2**29},
    ]
    found = scaling.read_replica({"request_bytes": 40_000, "loads": loads}, cpus=4, busy=0.5)
    assert found == REPLICA


def test_figures_of_a_server_on_another_machine_are_rejected() -> None:
    figures = {"request_bytes": 1, "loads": [{"rate": 1, "server_cpu_us": None, "server_memory_bytes": None}]}
    with pytest.raises(SystemExit, match="on the server's machine"):
        scaling.read_replica(figures, cpus=4, busy=0.5)


def test_impossible_values_are_rejected() -> None:
    with pytest.raises(ValueError, match="above 0"):
        scaling.Replica(0.008, 1, 1, cpus=4, busy=0)
