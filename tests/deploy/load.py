"""What becomes of constant load on a proxy while one of two servers drains, is rolled over, and is killed."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from evalmode.wire import classifier_pb2 as wire
from evalmode.wire import classifier_pb2_grpc as wire_grpc
from tests.conftest import encode, plain
from tests.deploy.proxies import Proxy, Replica, running_proxy, running_replicas

CHANNELS = 4  # connections of clients, each with one request at a time
RED = wire.PredictRequest(image=encode(plain("red")))
LAME_DUCK_S = 1  # longer than the interval of the health checks, 0.5 s
START_S = 60


@dataclass(frozen=True)
class Outcome:
    """What became of the requests of one event.

    Attributes:
        answered: The number of requests that were answered.
        failed: The number of requests by status.
        shares: The number of answers of each server, if both took part throughout.
    """

    answered: int
    failed: dict[str, int]
    shares: list[int] | None = None


def measure(name: str, repository: Path, folder: Path, answers: int) -> dict[str, Outcome]:
    """Send constant load through a proxy during each event.

    Args:
        name: Name of the proxy.
        repository: The models of the servers.
        folder: An empty folder, for the proxy.
        answers: Number of answers to wait for at each step.

    Returns:
        The outcome of "steady", "drain", "roll" (of both servers, one after the other) and "kill".
    """
    options = ("--lame-duck", LAME_DUCK_S, "--grace", 20)
    with running_replicas(repository, *options) as replicas, running_proxy(name, replicas, folder) as proxy:
        first, second = replicas
        outcomes = {"steady": observe(proxy, replicas, answers, lambda: None)}

        def roll() -> None:
            bring_back(proxy, first)
            drain(proxy, second)
            bring_back(proxy, second)

        outcomes["drain"] = observe(proxy, [], answers, lambda: drain(proxy, first))
        outcomes["roll"] = observe(proxy, [], answers, roll)
        outcomes["kill"] = observe(proxy, [], answers, first.kill, lambda: bring_back(proxy, first))
    return outcomes


def observe(proxy: Proxy, counted: list[Replica], answers: int, *acts: Callable[[], None]) -> Outcome:
    """Send load, and wait for answers before and after each act."""
    before = [count_answers(replica) for replica in counted]
    with constant_load(proxy.address) as results:
        wait_for_answers(results, answers)
        for act in acts:
            act()
            wait_for_answers(results, answers)
    shares = [count_answers(replica) - count for replica, count in zip(counted, before, strict=True)]
    failed = {status: count for status, count in results.items() if status != "red"}
    return Outcome(results["red"], failed, shares or None)


def drain(proxy: Proxy, replica: Replica) -> None:
    """Stop a replica without a loss, as the comment of the proxy's configuration says."""
    if proxy.reload:
        text = proxy.config.read_text()
        proxy.config.write_text(text.replace(f":{replica.port} max_fails", f":{replica.port} down max_fails"))
        proxy.reload()
    assert replica.stop() == 0


def bring_back(proxy: Proxy, replica: Replica) -> None:
    """Start a replica that was stopped, and wait until it takes part again."""
    replica.start()
    text = proxy.config.read_text()
    if proxy.reload and f":{replica.port} down" in text:  # not after a kill, which nginx notices itself
        proxy.config.write_text(text.replace(f":{replica.port} down", f":{replica.port}"))
        proxy.reload()
    until = time.monotonic() + START_S
    while count_answers(replica) == 0:
        assert time.monotonic() < until, f"{proxy.name} sends nothing to the server that was started again"
        time.sleep(0.05)


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
