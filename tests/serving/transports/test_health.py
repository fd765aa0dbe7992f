"""Health: a state per name, NOT_SERVING for good after the shutdown, and watchers that are woken without a lock."""

from __future__ import annotations

import pytest
from grpc_health.v1 import health_pb2

from evalmode.errors import ServiceUnknown
from serving.transports.health import Health
from tests.serving.conftest import WAIT_S, spawn

Status = health_pb2.HealthCheckResponse


@pytest.fixture
def health() -> Health:
    made = Health()
    made.set({"": True, "colours": True, "colours/1": False})
    return made


def test_every_name_has_its_own_state(health: Health) -> None:
    assert [health.check(name).status for name in ("", "colours", "colours/1")] == [
        Status.SERVING,
        Status.SERVING,
        Status.NOT_SERVING,
    ]
    health.set({"colours": False})
    assert health.check("colours").status == Status.NOT_SERVING
    assert health.check("").status == Status.SERVING


def test_an_unknown_name_is_an_error_of_check_and_a_status_of_watch_and_adds_no_entry(health: Health) -> None:
    before = dict(health._states)
    for number in range(1000):
        with pytest.raises(ServiceUnknown, match=f"no service or model 'unknown{number}' is served"):
            health.check(f"unknown{number}")
        assert health.watch(f"unknown{number}").status == Status.SERVICE_UNKNOWN
    assert health._states == before


def test_a_forgotten_name_is_unknown(health: Health) -> None:
    health.set({}, forget=["colours/1", "never there"])
    assert health.watch("colours/1").status == Status.SERVICE_UNKNOWN


def test_after_leave_all_old_and_new_names_are_not_serving(health: Health) -> None:
    health.leave()
    health.set({"": True, "new": True})
    assert {health.check(name).status for name in ("", "colours", "colours/1", "new")} == {Status.NOT_SERVING}


def test_a_watcher_is_woken_by_each_change_until_it_ends(health: Health) -> None:
    woken: list[int] = []

    def wake() -> None:
        woken.append(health.watch("colours").status)

    with health.watched(wake):
        health.set({"colours": False})
        health.set({"colours": True})
        health.leave()
    health.set({"colours": True})
    assert woken == [Status.NOT_SERVING, Status.SERVING, Status.NOT_SERVING]


@pytest.mark.parametrize("change", [lambda health: health.set({"": False}), lambda health: health.leave()])
def test_no_lock_is_held_while_watchers_are_woken(health: Health, change) -> None:
    """Otherwise a watcher that waits for another thread could cause a deadlock."""

    def watch_and_leave() -> bool:
        with health.watched(lambda: None):
            return True

    ended: list[bool] = []
    with health.watched(lambda: ended.append(spawn(watch_and_leave).result(WAIT_S))):
        assert spawn(change, health).result(2 * WAIT_S) is None
    assert ended == [True]
