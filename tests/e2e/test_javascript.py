"""The JavaScript client of examples/javascript with Node.js and @grpc/grpc-js from npm, against a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Server, encode, plain, serving

ROOT = Path(__file__).parents[2]
PACKAGES = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1")
TOKEN = "javascript-0123456789"

Node = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A function that runs the client in a folder with its packages."""
    if not shutil.which("npm"):
        pytest.skip("no npm")
    folder = tmp_path_factory.mktemp("javascript")
    shutil.copy(ROOT / "examples" / "javascript" / "predict.mjs", folder)
    installed = subprocess.run(
        ["npm", "install", "--no-fund", "--no-audit", *PACKAGES], cwd=folder, capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr[-2000:]

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["node", "predict.mjs", *map(str, arguments), str(ROOT / "protos/evalmode/wire/classifier.proto")]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
        )

    return run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "red.png").write_bytes(encode(plain("red")))
    return tmp_path / "red.png"


def test_the_client_predicts(node: Node, server: Server, image: Path) -> None:
    done = node(server.address, image)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [label for label, _ in lines] == ["red", "green", "blue"]
    assert sum(float(probability) for _, probability in lines) == pytest.approx(1, abs=1e-3)


def test_the_client_reports_errors(node: Node, server: Server, image: Path) -> None:
    image.write_bytes(b"not an image")
    done = node(server.address, image)
    assert done.returncode == 1
    assert done.stderr.startswith("INVALID_ARGUMENT: not an image")


def test_the_client_sends_a_token(node: Node, colours: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    with serving(colours, "--tokens", tmp_path / "tokens") as guarded:
        assert node(guarded.address, image).stderr.startswith("UNAUTHENTICATED")
        assert node(guarded.address, image, TOKEN=TOKEN).stdout.startswith("red ")
