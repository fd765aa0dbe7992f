"""A Prometheus that scrapes one server every second, in a separate process."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 120  # of every wait: a test that reaches it hangs
ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
CONFIGURATION = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 500ms}}
rule_files: [rules.yaml]
scrape_configs: [{{job_name: evalmode, static_configs: [{{targets: ["{target}"]}}]}}]
"""

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="no Prometheus: Debian's package has it"
)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus.

    Attributes:
        address: Its HOST:PORT.
    """

    address: str

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=LIMIT_S):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """The data of a response of its API."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=LIMIT_S) as reply:
            return json.load(reply)["data"]

    def query(self, expression: str) -> list[Any]:
        """The samples of an instant query."""
        return list(self.get("query", query=expression)["result"])

    def list_firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self.get("alerts")["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}


@contextmanager
def watching(folder: Path, target: str, rules: str) -> Iterator[Prometheus]:
    """Run Prometheus with rules, on a free port, until the block ends.

    Args:
        folder: For its files.
        target: HOST:PORT of the metrics that it scrapes, as the job evalmode.
        rules: The rules file.
    """
    (folder / "rules.yaml").write_text(rules)
    (folder / "prometheus.yaml").write_text(CONFIGURATION.format(target=target))
    options = ("--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:0")
    log = folder / "prometheus.log"
    with log.open("w") as file:
        process = subprocess.Popen(["prometheus", *options], cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: process.poll() is not None or find_address(log.read_text()))
        assert process.poll() is None, log.read_text()
        prometheus = Prometheus(find_address(log.read_text()))
        wait_for(prometheus.is_ready)
        wait_for(lambda: prometheus.query("up"))  # its first scrape takes some seconds
        yield prometheus
    finally:
        process.kill()
        process.wait()


def find_address(log: str) -> str:
    """The address that Prometheus listens on, by its log; "" if it does not listen yet."""
    found = re.search(r'msg="Listening on" address=(\S+)', log)
    return found[1] if found else ""


def wait_for(holds: Callable[[], object], describe: Callable[[], object] = lambda: "it is false") -> None:
    """Poll a condition until it is true, for at most ``LIMIT_S`` seconds; then fail with a description of the state."""
    until = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < until, f"after {LIMIT_S} s: {describe()}"
        time.sleep(0.05)


def find_free_port() -> int:
    """A port that a server may listen on later."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
