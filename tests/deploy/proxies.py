"""Runs nginx, HAProxy and Envoy with the configurations of deploy/proxies, in front of two real servers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from tests.conftest import Server, serving
from tests.deploy.monitoring import find_free_port

PROXIES = Path(__file__).parents[2] / "deploy" / "proxies"
START_S = 30
REPLICAS = ("evalmode-1", "evalmode-2")
Edit = Callable[[str], str]


@dataclass
class Proxy:
    """A proxy in front of replicas.

    Attributes:
        name: Its name.
        port: The port of clients.
        config: Its configuration, with the addresses of the replicas.
        reload: Makes it read the configuration again, if it can.
    """

    name: str
    port: int
    config: Path
    reload: Callable[[], None] | None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def wait(self) -> None:
        """Wait until it forwards calls."""
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(START_S)


@dataclass
class Replica:
    """A server at a fixed address that can be started again.

    Attributes:
        repository: Its model repository.
        options: Options of ``evalmode serve``.
        port: Its port, and ``metrics_port`` that of its metrics.
    """

    repository: Path
    options: tuple[object, ...]
    port: int = field(default_factory=find_free_port)
    metrics_port: int = field(default_factory=find_free_port)
    _running: ExitStack = field(default_factory=ExitStack)

    def start(self) -> Server:
        """Start it, and return it once it is ready."""
        ports = ("--port", self.port, "--metrics-port", self.metrics_port)
        self.server = self._running.enter_context(serving(self.repository, *ports, *self.options))
        return self.server

    def stop(self) -> int:
        """Drain it; returns its exit code."""
        code, _ = self.server.stop()
        self._running.close()
        return code

    def kill(self) -> None:
        """Kill it without a warning."""
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait()
        self._running.close()

    def close(self) -> None:
        self._running.close()


@contextmanager
def running_replicas(repository: Path, *options: object) -> Iterator[list[Replica]]:
    """Two replicas, which are killed at the end."""
    replicas = [Replica(repository, options) for _ in REPLICAS]
    try:
        for replica in replicas:
            replica.start()
        yield replicas
    finally:
        for replica in replicas:
            replica.close()


@contextmanager
def running_proxy(name: str, replicas: list[Replica], folder: Path) -> Iterator[Proxy]:
    """A proxy with its configuration from deploy/proxies, whose addresses are replaced by those of the replicas."""
    start = {"nginx": start_nginx, "haproxy": start_haproxy, "envoy": start_envoy}[name]
    port = find_free_port()
    with start(replicas, port, folder) as proxy:
        proxy.wait()
        yield proxy


def write_config(name: str, folder: Path, edits: dict[str, str]) -> Path:
    """Copy a configuration; each text must occur in it."""
    text = (PROXIES / name).read_text()
    for old, new in edits.items():
        assert old in text, f"{name} lacks {old!r}"
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return path


@contextmanager
def start_nginx(replicas: list[Replica], port: int, folder: Path) -> Iterator[Proxy]:
    edits = {f"{name}:8001": f"127.0.0.1:{one.port}" for name, one in zip(REPLICAS, replicas, strict=True)}
    config = write_config("nginx.conf", folder, {**edits, "listen 8001": f"listen {port}"})
    command = [find("nginx"), "-p", str(folder), "-c", str(config), "-e", str(folder / "nginx.log")]
    globals_ = f"daemon off; pid {folder}/nginx.pid;"
    with run([*command, "-g", globals_], folder) as process:
        yield Proxy("nginx", port, config, lambda: reload_nginx(process))


def reload_nginx(process: subprocess.Popen[bytes]) -> None:
    """Let nginx read its configuration, and wait until no worker has the old one."""
    master = psutil.Process(process.pid)
    before = set(master.children())
    process.send_signal(signal.SIGHUP)
    until = time.monotonic() + START_S
    while before & set(master.children()) or not master.children():
        assert time.monotonic() < until, "nginx does not reload"
        time.sleep(0.05)


@contextmanager
def start_haproxy(replicas: list[Replica], port: int, folder: Path) -> Iterator[Proxy]:
    edits = {
        f"{name}:8001 proto h2 check check-proto h1 port 8002": (
            f"127.0.0.1:{one.port} proto h2 check check-proto h1 port {one.metrics_port}"
        )
        for name, one in zip(REPLICAS, replicas, strict=True)
    }
    config = write_config("haproxy.cfg", folder, {**edits, "bind :8001": f"bind 127.0.0.1:{port}"})
    with run([find("haproxy"), "-db", "-f", str(config)], folder):
        yield Proxy("haproxy", port, config, None)


@contextmanager
def start_envoy(replicas: list[Replica], port: int, folder: Path) -> Iterator[Proxy]:
    edits = {
        f"address: {name}, port_value: 8001": f"address: 127.0.0.1, port_value: {one.port}"
        for name, one in zip(REPLICAS, replicas, strict=True)
    }
    edits |= {"address: 0.0.0.0, port_value: 8001": f"address: 127.0.0.1, port_value: {port}"}
    edits |= {"port_value: 9901": "port_value: 0", "type: STRICT_DNS": "type: STATIC"}
    config = write_config("envoy.yaml", folder, edits)
    command = [find("envoy"), "-c", str(config), "--disable-hot-restart", "--concurrency", "2", "-l", "warning"]
    with run(command, folder):
        yield Proxy("envoy", port, config, None)


@contextmanager
def run(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, which is ended at the end; its output is in ``output.txt``."""
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
        time.sleep(0.2)
        assert process.poll() is None, (folder / "output.txt").read_text()
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def find(program: str) -> str:
    """The path of a program: of this environment, or of the system."""
    path = shutil.which(program, path=sysconfig.get_path("scripts")) or shutil.which(program)
    assert path, f"{program} is not installed: see make test-proxies"
    return path
