"""A server serves every layout of models as it lies, and follows links that are swapped under it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

import evalmode
import tests.conftest
from evalmode import Client
from evalmode.artifact.publishing import publish, withdraw
from evalmode.wire import open_inference_pb2 as wire
from evalmode.wire import open_inference_pb2_grpc as wire_grpc
from tests.conftest import COLOURS, colour_artifact, encode, plain, serving
from tests.serving.conftest import WAIT_S, wait_until

GERMAN = ("rot", "grün", "blau")
RED = encode(plain("red"))
OPTIONS = {"poll": 0.05, "no_metrics": True}


def put(path: Path, labels: tuple[str, ...] = COLOURS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(colour_artifact(labels))
    return path


def link(path: Path, target: str) -> Path:
    """Create a link, or replace it atomically, as Kubernetes and git-sync do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(".fresh")
    fresh.symlink_to(target)
    fresh.rename(path)
    return path


def lay_blobs(root: Path) -> Path:
    """As Hugging Face's cache, KServe for a volume, and Triton with a shared store: the file is a link out."""
    put(root / "blobs" / "1a2b")
    return link(root / "models" / "pets" / "1" / "model.onnx", "../../../blobs/1a2b").parents[2]


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str, str, dict[str, str]]] = {
    "repository": (lambda root: put(root / "models/pets/3/model.onnx").parents[2], "pets", "3", {}),
    "versions": (lambda root: put(root / "pets/3/model.onnx").parents[1], "pets", "3", {}),
    "versions with a name": (lambda root: put(root / "x/3/model.onnx").parents[1], "b", "3", {"model_name": "b"}),
    "folder with model.onnx": (lambda root: put(root / "pets/model.onnx").parent, "pets", "1", {}),
    "folder with another file": (lambda root: put(root / "x/pets.onnx").parent, "pets", "1", {}),
    "file": (lambda root: put(root / "x/pets.onnx"), "pets", "1", {}),
    "link to a folder": (lambda root: link(root / "b", str(put(root / "x/model.onnx").parent)), "b", "1", {}),
    "links out": (lay_blobs, "pets", "1", {"follow_links": "{root}/blobs"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_served(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay, name, version, options = LAYOUTS[layout]
    repository = lay(tmp_path)
    options = {key: value.format(root=tmp_path) for key, value in options.items()}
    caplog.set_level("INFO")
    with (
        evalmode.start_server(repository, transport=tests.conftest.transport, **OPTIONS, **options) as server,
        Client(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        found = client.predict(RED)
        assert (found.label, found.model, found.version) == ("red", name, version)
        stub = wire_grpc.GRPCInferenceServiceStub(channel)
        (entry,) = stub.RepositoryIndex(wire.RepositoryIndexRequest(), timeout=WAIT_S).models
        assert (entry.name, entry.version, entry.state, entry.reason) == (name, version, "READY", "")
    [said] = [record.getMessage() for record in caplog.records if record.name == "serving.services.models"][:1]
    assert name in said
    assert str(repository) in said


def lay_config_map(root: Path, number: int, labels: tuple[str, ...]) -> Path:
    """A folder that Kubernetes mounts: its files are links through ``..data``, which is replaced."""
    put(root / f"pets/..2026_{number}/model.onnx", labels)
    link(root / "pets" / "..data", f"..2026_{number}")
    if number == 0:
        link(root / "pets" / "model.onnx", "..data/model.onnx")
    return root / "pets"


def lay_worktree(root: Path, number: int, labels: tuple[str, ...]) -> Path:
    """A checkout of git-sync: a link to a worktree, which is replaced by one to another."""
    put(root / f"git/.worktrees/{number}/7/model.onnx", labels)
    return link(root / "git" / "pets", f".worktrees/{number}")


def lay_file(root: Path, number: int, labels: tuple[str, ...]) -> Path:
    """A single file that is replaced."""
    fresh = put(root / "incoming", labels)
    return fresh.rename(root / "pets.onnx")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("lay", [lay_config_map, lay_worktree, lay_file])
def test_a_swap_is_followed(lay: Callable[[Path, int, tuple[str, ...]], Path], workers: int, tmp_path: Path) -> None:
    repository = lay(tmp_path, 0, COLOURS)
    with serving(repository, "--poll", 0.05, "--workers", workers) as server, Client(server.address) as client:
        before = client.predict(RED)
        assert (before.label, before.model) == ("red", "pets")
        lay(tmp_path, 1, GERMAN)
        wait_until(lambda: client.predict(RED).label == "rot")
        assert client.predict(RED).version == before.version
        code, logged = server.stop()
    assert code == 0
    assert "ERROR" not in logged
    assert "WARNING" not in logged


def test_the_folder_of_a_model_follows_what_is_published_and_rolled_back(tmp_path: Path) -> None:
    publish(tmp_path, "pets", colour_artifact())
    with evalmode.start_server(tmp_path / "pets", **OPTIONS) as server, Client(server.address) as client:
        publish(tmp_path, "pets", colour_artifact(GERMAN))
        wait_until(lambda: client.predict(RED).version == "2")
        withdraw(tmp_path, "pets")
        wait_until(lambda: client.predict(RED).version == "1")


def test_the_option_that_was_a_flag_allows_every_folder(tmp_path: Path) -> None:
    put(tmp_path / "blobs" / "1a2b")
    repository = link(tmp_path / "models" / "model.onnx", "../blobs/1a2b").parent
    options = ("--model-name", "cats", "--workers", 2, "--follow-links", "--no-reflection")
    with serving(repository, *options) as server, Client(server.address) as client:
        assert client.predict(RED).model == "cats"
    with evalmode.start_server(repository, follow_links=True, **OPTIONS) as started:
        assert started.describe().startswith("serving models")


def test_a_link_out_is_refused_with_the_option_that_allows_it(tmp_path: Path) -> None:
    with pytest.raises(evalmode.UsageError, match=f"such as --follow-links {tmp_path / 'blobs'}$"):
        evalmode.start_server(lay_blobs(tmp_path), **OPTIONS)
