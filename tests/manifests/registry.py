"""A private OCI registry in a separate process, whose files can be changed, and two clients that pull from it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import oras.client

START_S = 30
TITLE = "org.opencontainers.image.title"  # the annotation of a file that has its path
# bcrypt of "secret"; in base64, "models:secret" is what a Secret of type kubernetes.io/dockerconfigjson contains.
USERS = "models:$2y$05$ioENB4XwBUXx.e4dmL0UPemeLPXrHfpfFpCGOSQ4QCn/.hGYoJEfy\n"
CREDENTIALS = "bW9kZWxzOnNlY3JldA=="
CONFIGURATION = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
auth: {{htpasswd: {{realm: models, path: {folder}/users}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@dataclass(frozen=True)
class Registry:
    """A running registry, which requires a password.

    Attributes:
        host: Its HOST:PORT. Clients of OCI registries use HTTP without TLS for the name localhost.
        folder: Its files, and ``config.json``, the credentials for it.
    """

    host: str
    folder: Path

    @property
    def credentials(self) -> Path:
        return self.folder / "config.json"

    def push(self, name: str, repository: Path) -> str:
        """Push the files of a model repository as ``oras push`` does; returns the reference with the digest."""
        files = [path.relative_to(repository).as_posix() for path in sorted(repository.rglob("*")) if path.is_file()]
        titles = self.folder / "annotations.json"
        titles.write_text(json.dumps({str(repository / file): {TITLE: file} for file in files}))
        target = f"{self.host}/{name}"
        reply = connect().push(
            f"{target}:3",
            config_path=str(self.credentials),
            files=[str(repository / file) for file in files],
            annotation_file=str(titles),
            disable_path_validation=True,
            quiet=True,
        )
        return f"{target}@{reply.headers['Docker-Content-Digest']}"

    def find_blob(self, digest: str) -> Path:
        """The registry's file with the content of a digest."""
        value = digest.removeprefix("sha256:")
        return self.folder / "data/docker/registry/v2/blobs/sha256" / value[:2] / value / "data"

    def list_blobs(self) -> list[Path]:
        """All files that clients have pushed: manifests too."""
        return sorted((self.folder / "data").rglob("blobs/sha256/*/*/data"))


def connect() -> oras.client.OrasClient:
    """The Python client, which does not compare digests."""
    return oras.client.OrasClient(insecure=True, auth_backend="basic")


def pull_unchecked(arguments: list[str]) -> None:
    """Pull by the Python client with the arguments of the command ``oras``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["pull"])
    parser.add_argument("--output", required=True)
    parser.add_argument("--registry-config")
    parser.add_argument("reference")
    given = parser.parse_args(arguments)
    connect().pull(given.reference, config_path=given.registry_config, outdir=given.output)


@contextmanager
def running_registry(folder: Path) -> Iterator[Registry]:
    """Run Debian's docker-registry with its files in a folder, until the block ends."""
    program = shutil.which("docker-registry")
    assert program, "docker-registry is not installed: see make test-manifests"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    registry = Registry(f"localhost:{port}", folder)
    (folder / "users").write_text(USERS)
    registry.credentials.write_text(json.dumps({"auths": {registry.host: {"auth": CREDENTIALS}}}))
    (folder / "registry.yaml").write_text(CONFIGURATION.format(folder=folder, port=port))
    variables = {"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", folder / "registry.yaml"], stdout=log, stderr=log, env=variables)
    try:
        wait_for_answer(f"http://{registry.host}/v2/", process, folder / "log")
        yield registry
    finally:
        process.kill()
        process.wait()


def wait_for_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a registry asks for a password."""
    until = time.monotonic() + START_S
    while find_status(url) != HTTPStatus.UNAUTHORIZED:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


def find_status(url: str) -> int | None:
    """The status of an answer; None without one."""
    try:
        with urllib.request.urlopen(url, timeout=START_S) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return None
