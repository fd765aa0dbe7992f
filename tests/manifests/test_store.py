"""KServe's storage initializer downloads folders of S3, with the arguments of the chart's init container."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from deploy.render import render
from tests.manifests.pods import read_environment

MODEL = os.urandom(100_000)
LAYOUTS = ["pets/3/model.onnx", "3/model.onnx", "model.onnx", "resnet.onnx"]  # docs/how-to/repository.md: Layouts
# What the entry point of the image runs with its two arguments.
INITIALIZER = "import sys; from kserve_storage import Storage; Storage.download(*sys.argv[1:])"


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """The content of ``models.store.credentialsSecret``, for a server of S3 with a model in each layout."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="name",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="models")
    for index, path in enumerate(LAYOUTS):
        client.put_object(Bucket="models", Key=f"layout-{index}/{path}", Body=MODEL)
        client.put_object(Bucket="models", Key=f"layout-{index}0/other.onnx", Body=MODEL)  # not in the folder
    yield {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    server.stop()


def download(uri: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the init container's arguments, with a folder in the place of /models."""
    objects = render({"models": {"store": {"uri": uri, "credentialsSecret": "s3"}}})
    (deployment,) = (one for one in objects if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["initContainers"]
    arguments = [str(folder) if one == "/models" else one for one in container["args"]]
    command = [sys.executable, "-P", "-c", INITIALIZER, *arguments]
    variables = {"PATH": os.environ["PATH"], **read_environment(container), **environment}
    return subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("index", "path"), list(enumerate(LAYOUTS)), ids=LAYOUTS)
def test_every_layout_arrives(environment: dict[str, str], tmp_path: Path, index: int, path: str) -> None:
    done = download(f"s3://models/layout-{index}", tmp_path, environment)
    assert done.returncode == 0, done.stderr
    files = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert [(one.relative_to(tmp_path).as_posix(), one.read_bytes()) for one in files] == [(path, MODEL)]


def test_a_folder_that_does_not_exist_fails_and_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    done = download("s3://models/nothing", tmp_path, environment)
    assert done.returncode == 1
    assert "No model found in nothing" in done.stderr
