"""The configurations of deploy/proxies: requests spread, and none is lost when a server drains, rolls or is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.load import CHANNELS, measure

pytestmark = pytest.mark.proxies
ANSWERS = 300
# nginx keeps no copy of a request that it has sent: each connection may lose one.
LOST = {"nginx": CHANNELS, "haproxy": 0, "envoy": 0}


@pytest.mark.parametrize("name", LOST)
def test_requests_are_spread_and_lost_only_by_a_kill_that_the_proxy_cannot_repeat(
    name: str, colours: Path, tmp_path: Path
) -> None:
    outcomes = measure(name, colours, tmp_path, ANSWERS)
    shares = outcomes["steady"].shares
    assert shares
    assert min(shares) > 0.8 * max(shares)
    kill = outcomes.pop("kill")
    assert {event: outcome.failed for event, outcome in outcomes.items() if outcome.failed} == {}
    assert sum(kill.failed.values()) <= LOST[name]
    assert all(status.startswith("UNAVAILABLE") for status in kill.failed)
