"""The configurations of deploy/proxies: requests spread, and none is lost when a replica drains, rolls or is killed."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from evalmode.wire import classifier_pb2 as wire
from evalmode.wire import classifier_pb2_grpc as wire_grpc
from tests.conftest import encode, plain
from tests.deploy.proxies import Proxy, Replica, running_proxy, running_replicas

pytestmark = pytest.mark.proxies
NAMES = ("nginx", "haproxy", "envoy")
CHANNELS = 4
RED = wire.PredictRequest(image=encode(plain("red")))
LAME_DUCK_S = 2


@pytest.fixture(params=NAMES)
def proxied(request: pytest.FixtureRequest, colours: Path, tmp_path: Path) -> Iterator[tuple[Proxy, list[Replica]]]:
    """A proxy in front of two replicas."""
    with (
        running_replicas(colours, "--lame-duck", LAME_DUCK_S, "--grace", 20) as replicas,
        running_proxy(request.param, replicas, tmp_path) as proxy,
    ):
        yield proxy, replicas


@contextmanager
def constant_load(address: str) -> Iterator[Counter[str]]:
    """Send requests on several connections until the end of the block; counts their results."""
    results: Counter[str] = Counter()
    over = threading.Event()

    def send() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options=options) as channel:
            stub = wire_grpc.ClassifierStub(channel)
            while not over.is_set():
                try:
                    label = stub.Predict(RED, timeout=20).scores[0].label
                    results[label] += 1
                except grpc.RpcError as error:
                    results[f"{error.code().name} {error.details()}"] += 1

    threads = [threading.Thread(target=send) for _ in range(CHANNELS)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        over.set()
        for thread in threads:
            thread.join()


def count_answers(replica: Replica) -> int:
    """The number of requests that a replica has answered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{replica.metrics_port}/metrics", timeout=10) as page:
        text = page.read().decode()
    return sum(int(float(one)) for one in re.findall(r'evalmode_requests_total\{.*code="OK".*\} (\S+)', text))


def wait_for_answers(results: Counter[str], count: int) -> None:
    """Wait until so many more requests were answered."""
    until = results["red"] + count
    while results["red"] < until:
        time.sleep(0.01)


def roll(proxy: Proxy, replica: Replica) -> None:
    """Drain a replica and start it again, as the comment of the proxy's configuration says."""
    if proxy.reload:
        text = proxy.config.read_text()
        proxy.config.write_text(text.replace(f":{replica.port} max_fails", f":{replica.port} down max_fails"))
        proxy.reload()
        assert replica.stop() == 0
        replica.start()
        proxy.config.write_text(text)
        proxy.reload()
    else:
        assert replica.stop() == 0
        replica.start()


def test_requests_are_spread_and_a_roll_loses_none(proxied: tuple[Proxy, list[Replica]]) -> None:
    proxy, replicas = proxied
    with constant_load(proxy.address) as results:
        wait_for_answers(results, 1000)
        counts = [count_answers(replica) for replica in replicas]
        for replica in replicas:
            roll(proxy, replica)
            wait_for_answers(results, 1000)
    assert min(counts) > 0.8 * max(counts), counts
    assert set(results) == {"red"}, results


def test_a_replica_that_is_killed_costs_only_what_the_proxy_cannot_send_again(
    proxied: tuple[Proxy, list[Replica]],
) -> None:
    proxy, replicas = proxied
    with constant_load(proxy.address) as results:
        wait_for_answers(results, 1000)
        replicas[0].kill()
        wait_for_answers(results, 1000)
        replicas[0].start()
        while count_answers(replicas[0]) == 0:  # until it takes part again
            time.sleep(0.05)
    failed = {status: count for status, count in results.items() if status != "red"}
    lost = CHANNELS if proxy.name == "nginx" else 0  # it keeps no copy of a request that it has sent
    assert sum(failed.values()) <= lost, results
    assert all(status.startswith("UNAVAILABLE") for status in failed)
