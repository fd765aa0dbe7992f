"""The published tritonclient, in a separate environment, works with the server; its contract is part of evalmode's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from evalmode.client import Client
from evalmode.wire import model_config_pb2, open_inference_pb2
from tests.conftest import encode, plain, serving

CLIENTS = Path(__file__).parents[1] / "clients"
EXAMPLE = Path(__file__).parents[2] / "examples" / "tritonclient" / "classify.py"
CHAPTERS = (
    *("health", "metadata", "config", "infer", "classification", "encoded", "typed"),
    *("callbacks", "stream", "refusals", "repository", "statistics", "asyncio"),
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with tritonclient and the dependencies of the bare install of evalmode."""
    environment = tmp_path_factory.mktemp("tritonclient")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    install: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "-r",
        CLIENTS / "requirements-tritonclient.txt",
    ]
    subprocess.run([*install, "googleapis-common-protos>=1.70,<2"], check=True)
    return python


def run(python: Path, *arguments: object) -> str:
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_call_of_its_api_works(python: Path, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "control").write_text("who-may-load-and-unload")
    with serving(colours, "--enable-control", "--control-tokens", tmp_path / "control") as running:
        output = run(python, CLIENTS / "tritonclient_story.py", running.address)
    assert tuple(output.split()) == CHAPTERS


def test_the_example_classifies_photos(python: Path, colours: Path, tmp_path: Path) -> None:
    photos = [tmp_path / f"{colour}.jpg" for colour in ("blue", "red")]
    for photo in photos:
        photo.write_bytes(encode(plain(photo.stem), "JPEG"))
    with serving(colours) as running:
        output = run(python, EXAMPLE, running.address, "colours", *photos)
    assert [line.split()[:2] for line in output.splitlines()] == [[str(photo), photo.stem] for photo in photos]
    assert all(0.9 < float(line.split()[2]) <= 1 for line in output.splitlines())


def test_it_works_with_the_client_of_evalmode_in_one_process(python: Path, colours: Path, tmp_path: Path) -> None:
    code = """
import sys
import tritonclient.grpc as triton
from evalmode.client import Client
with Client(sys.argv[1]) as client, triton.InferenceServerClient(sys.argv[1]) as triton_client:
    print(client.predict(sys.argv[2]).label, triton_client.is_model_ready("colours"))
"""
    (tmp_path / "red.png").write_bytes(encode(plain("red")))
    root = Path(__file__).parents[2]
    with serving(colours) as running:
        code = f"import sys; sys.path.insert(0, {str(root)!r})\n{code}"
        assert run(python, "-c", code, running.address, tmp_path / "red.png") == "red True\n"
        with Client(running.address) as client:
            assert client.get_model().model == "colours"


def list_fields(message: Descriptor) -> Iterator[list[object]]:
    for field in message.fields:
        inner = field.message_type or field.enum_type
        yield [message.full_name, field.name, field.number, inner.full_name if inner else field.type, field.is_repeated]
    for nested in message.nested_types:
        yield from list_fields(nested)


def test_its_contract_is_part_of_that_of_evalmode(python: Path) -> None:
    published = json.loads(run(python, CLIENTS / "tritonclient_story.py", "--descriptors"))
    files = (open_inference_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
    fields = [one for file in files for message in file.message_types_by_name.values() for one in list_fields(message)]
    values = [[v.name, v.number] for file in files for enum in file.enum_types_by_name.values() for v in enum.values]
    [service] = open_inference_pb2.DESCRIPTOR.services_by_name.values()
    calls = [
        [one.name, one.input_type.full_name, one.output_type.full_name, one.client_streaming, one.server_streaming]
        for one in service.methods
    ]
    assert len(published["fields"]) > 300
    assert [one for one in published["fields"] if one not in fields] == []
    own_fields = {one[1] for one in fields if one not in published["fields"] and "Entry" not in str(one[0])}
    assert own_fields == {"properties"}
    assert values == published["values"]
    assert calls == published["calls"]
