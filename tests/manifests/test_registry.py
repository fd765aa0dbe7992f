"""Models that were pushed into an OCI registry arrive with the arguments of the chart's init container, and are served.

The chart runs the command ``oras``. If it is installed here, these tests run it. The Python client ``oras`` takes its
place otherwise; it compares no digests, so Helm, which has the library of ``oras``, shows what that library refuses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helm_python import HelmError, RegistryClient, package

from deploy.render import CHART, render
from tests.manifests.registry import Registry, pull_unchecked, running_registry

ORAS = shutil.which("oras")
WRITE = """
import sys
from pathlib import Path
from PIL import Image
from evalmode.artifact.publishing import publish
from tests.conftest import colour_artifact

publish(Path(sys.argv[1]), "colours", colour_artifact())
Image.new("RGB", (4, 4), (255, 0, 0)).save(sys.argv[2])
"""


@pytest.fixture(scope="module")
def evalmode() -> Path:
    """The command in the environment of the project, which make test-manifests puts on PATH."""
    path = shutil.which("evalmode")
    assert path, "evalmode is not on PATH: see make test-manifests"
    return Path(path)


@pytest.fixture(scope="module")
def written(evalmode: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository ``models`` and the image ``red.png``."""
    folder = tmp_path_factory.mktemp("written")
    run(evalmode.with_name("python"), "-c", WRITE, folder / "models", folder / "red.png")
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    folder = tmp_path / "registry"
    folder.mkdir()
    with running_registry(folder) as running:
        yield running


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pull(reference: str, folder: Path, credentials: Path) -> None:
    """Do what the init container does, with other paths than its mounts; unless it works, raise an exception."""
    objects = render({"models": {"artifact": {"reference": reference, "registrySecret": "registry"}}})
    (deployment,) = (one for one in objects if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["initContainers"]
    texts = {"/models": str(folder), "/etc/oras/config.json": str(credentials)}
    pairs = (argument.partition("=") for argument in container["args"])
    arguments = [name + equals + texts.get(value, value) for name, equals, value in pairs]
    if ORAS:
        subprocess.run([ORAS, *arguments], check=True, env={"HOME": "/nonexistent"}, timeout=60)
    else:
        pull_unchecked(arguments)


@contextmanager
def serving(evalmode: Path, repository: Path) -> Iterator[str]:
    """Serve a repository; yields the address."""
    command = [evalmode, "serve", "--repository", repository, "--port", "0", "--lame-duck", "0", "--no-metrics"]
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout
        try:
            yield f"127.0.0.1:{process.stdout.readline().split()[-1]}"
        finally:
            process.terminate()


def test_a_pushed_repository_arrives_by_its_digest_and_is_served(
    registry: Registry, written: Path, evalmode: Path, tmp_path: Path
) -> None:
    reference = registry.push("models/colours", written / "models")
    pull(reference, tmp_path / "models", registry.credentials)
    (model,) = (path for path in (tmp_path / "models").rglob("*") if path.is_file())
    assert model == tmp_path / "models" / "colours" / "1" / "model.onnx"
    assert model.read_bytes() == (written / "models" / "colours" / "1" / "model.onnx").read_bytes()
    with serving(evalmode, tmp_path / "models") as address:
        assert "red" in run(evalmode, "predict", written / "red.png", "--address", address, "--csv", "--top-k", 1)


def test_the_reference_with_the_tag_that_was_pushed_is_refused(registry: Registry, written: Path) -> None:
    reference = registry.push("models/colours", written / "models")
    with pytest.raises(HelmError, match="artifact/reference"):
        render({"models": {"artifact": {"reference": reference.partition("@")[0] + ":3"}}})


@pytest.mark.parametrize("changed", ["the manifest", "the file"])
def test_the_library_of_oras_refuses_other_bytes_than_those_of_the_digest(
    registry: Registry, tmp_path: Path, changed: str
) -> None:
    """An artifact that Helm can pull is a chart."""
    with RegistryClient(plain_http=True, credentials_file=tmp_path / "credentials.json") as client:
        client.login(registry.host, "models", "secret", plain_http=True)
        archive = package(str(CHART), destination=str(tmp_path))
        client.push(archive, f"oci://{registry.host}/charts", plain_http=True)
        name = f"{registry.host}/charts/evalmode"
        digest = client.resolve(f"{name}:{Path(archive).stem.rpartition('-')[2]}")["digest"]
        client.pull(f"oci://{name}@{digest}", destination=tmp_path, plain_http=True)
        blob = (
            registry.find_blob(digest)
            if changed == "the manifest"
            else max(registry.list_blobs(), key=lambda path: path.stat().st_size)
        )
        damage(blob)
        with pytest.raises(HelmError, match="digest"):
            client.pull(f"oci://{name}@{digest}", destination=tmp_path, plain_http=True)


def test_a_server_refuses_a_damaged_model_even_if_the_client_compared_nothing(
    registry: Registry, written: Path, evalmode: Path, tmp_path: Path
) -> None:
    reference = registry.push("models/colours", written / "models")
    damage(max(registry.list_blobs(), key=lambda path: path.stat().st_size))
    pull_unchecked(["pull", f"--output={tmp_path}", f"--registry-config={registry.credentials}", reference])
    command = [evalmode, "serve", "--repository", tmp_path, "--port", "0", "--no-metrics"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "colours" in done.stderr


def damage(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
