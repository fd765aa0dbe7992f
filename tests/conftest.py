"""Shared by all tests: small artifacts, and servers in separate processes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.publishing import publish
from evalmode.artifact.sealing import seal
from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT
from evalmode.certification.certify import certify, draw_golden
from evalmode.images.pixels import PixelContract
from evalmode.runtime.loading import load_artifact, load_model
from evalmode.runtime.model import ImageClassifier
from tests.forked_commands import Forks

COLOURS = ("red", "green", "blue")

transport = "grpcio"

# A shell makes background commands ignore Ctrl-C, and the servers that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of all suites: pytest reads them from the outermost conftest.py alone."""
    parser.addoption("--address", help="conformance: HOST:PORT of the server to test; default: a new server")
    parser.addoption("--model", help="conformance: name of the model to test")
    parser.addoption("--result", type=Path, help="conformance: JSON file for the outcome of each rule")
    parser.addoption("--transport", choices=("grpcio", "native"), default="grpcio", help="transport of every server")


def pytest_configure(config: pytest.Config) -> None:
    """Store the transport where functions that are not fixtures can read it."""
    global transport
    transport = config.getoption("--transport")


# Limitations of pygrpc-native 0.5.0, by the argument of the marker ``native_lacks``.
NATIVE_LACKS = {
    "Unix sockets": "pygrpc-native listens on a TCP port",
    "early refusal": "pygrpc-native receives the whole message before a call can be refused",
    "inflation": "pygrpc-native decompresses whole messages itself",
    "message timeout": "pygrpc-native waits for the message of Predict and ModelInfer without a time limit",
    "sent replies": "the native transport drains until the runs have ended and then for a fixed time",
    "pauses": "pygrpc-native copies messages without the GIL",
    "connections": "pygrpc-native forwards all other methods over one connection",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests of features that the transport lacks; deselect tests that need a GPU unless ``-m gpu`` is given."""
    if transport == "native":
        for item in items:
            for marker in item.iter_markers("native_lacks"):
                item.add_marker(pytest.mark.skip(reason=NATIVE_LACKS[marker.args[0]]))
    if "gpu" in config.option.markexpr:
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]


@pytest.fixture(scope="session")
def colour_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour artifact as a file outside any repository."""
    path = tmp_path_factory.mktemp("artifact") / "colours.onnx"
    path.write_bytes(colour_artifact())
    return path


@pytest.fixture(scope="session")
def model(colour_file: Path) -> ImageClassifier:
    """The colour artifact, loaded as colours/1."""
    return load_model(colour_file, name="colours", version="1").as_classifier()


@pytest.fixture(scope="session")
def mapped() -> ImageClassifier:
    """The colour artifact with an activation map, loaded as mapped/1."""
    return load_artifact(map_artifact(), name="mapped", version="1").as_classifier()


@pytest.fixture
def readable_folder() -> Iterator[Path]:
    """A folder that every user may read, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop the privileges of root, which override file permissions."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def colour_artifact(labels: tuple[str, ...] = COLOURS, slow_steps: int = 0) -> bytes:
    """The colour graph with a certificate; with ``slow_steps`` it has none."""
    graph = colour_graph(slow_steps)
    manifest = ClassifierManifest(labels, PixelContract(4, 4, 3), {"network": "colours"})
    if slow_steps:
        return seal(graph, manifest)
    golden = draw_golden(manifest.pixels, len(labels))
    return certify(graph, manifest, {INPUT: golden}, ("",) * len(golden), difference=0.0)


def map_artifact(channel_order: str = "RGB") -> bytes:
    """The colour artifact with the optional output ``activation_map``: each channel / 25.5."""
    graph, contract = map_graph(), PixelContract(4, 4, 3, channel_order=channel_order)
    manifest = ClassifierManifest(COLOURS, contract, {"network": "colours"}, None, (ACTIVATION_MAP,))
    golden = draw_golden(manifest.pixels, len(COLOURS))
    return certify(graph, manifest, {INPUT: golden}, ("",) * len(golden), difference=0.0)


def map_graph() -> onnx.ModelProto:
    """The colour graph with the output ``activation_map``, float32 (N, 3, 4, 4), whose means are the logits."""
    model = colour_graph()
    model.graph.node.extend(
        [
            helper.make_node("Transpose", ["floats"], ["channels"], perm=[0, 3, 1, 2]),
            helper.make_node("Div", ["channels", "scale"], [ACTIVATION_MAP]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info(ACTIVATION_MAP, TensorProto.FLOAT, ("batch", 3, 4, 4)))
    return model


def colour_graph(slow_steps: int = 0) -> onnx.ModelProto:
    """A graph that classifies 4x4 RGB images by their brightest channel: logits = channel means / 25.5.

    ``slow_steps`` adds this many 256x256 matrix products to every inference, without an effect on the outputs.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "scale"], ["fast_logits" if slow_steps else "logits"]),
    ]
    constants: dict[str, np.ndarray] = {"axes": np.array([1, 2], np.int64), "scale": np.array(25.5, np.float32)}
    if slow_steps:
        constants |= {
            "steps": np.array(slow_steps, np.int64),
            "go": np.array(True),
            "start": np.zeros((256, 256), np.float32),
            "zero": np.array(0, np.float32),
        }
        square = helper.make_tensor_value_info("state", TensorProto.FLOAT, (256, 256))
        body = helper.make_graph(
            [
                helper.make_node("MatMul", ["state", "state"], ["next"]),
                helper.make_node("Identity", ["go_in"], ["go_out"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("step", TensorProto.INT64, ()),
                helper.make_tensor_value_info("go_in", TensorProto.BOOL, ()),
                square,
            ],
            [
                helper.make_tensor_value_info("go_out", TensorProto.BOOL, ()),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, (256, 256)),
            ],
        )
        nodes += [
            helper.make_node("Loop", ["steps", "go", "start"], ["burnt"], body=body),
            helper.make_node("ReduceMax", ["burnt"], ["burnt_zero"], keepdims=0),
            helper.make_node("Add", ["fast_logits", "burnt_zero"], ["logits"]),
        ]
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ("batch", 4, 4, 3))],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ("batch", 3)),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", 3)),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def encode(picture: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """Encode a picture as an image file."""
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def plain(colour: str | int | tuple[int, ...], size: tuple[int, int] = (4, 4), mode: str = "RGB") -> Image.Image:
    """A picture of one colour; size is (width, height)."""
    return Image.new(mode, size, colour)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository that holds colours/1."""
    repository = tmp_path_factory.mktemp("models")
    publish(repository, "colours", colour_artifact())
    return repository


@dataclass
class Server:
    """A running ``evalmode serve``."""

    process: subprocess.Popen[str]
    address: str
    metrics: str
    log: Path

    def logged(self) -> str:
        """The log so far."""
        return self.log.read_text()

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60) -> tuple[int, str]:
        """Send a signal, wait for the end, and return the exit code and the log."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s), self.logged()


@contextmanager
def serving(repository: Path, *options: object) -> Iterator[Server]:
    """Run ``evalmode serve`` on a free port in a separate process, which is killed at the end if it still runs."""
    command = [sys.executable, "-m", "evalmode", "serve", "--repository", str(repository), "--port", "0"]
    with tempfile.NamedTemporaryFile("w") as log:
        process = subprocess.Popen(
            [*command, "--lame-duck", "0", "--metrics-port", "0", "--transport", transport, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if not ready:
                pytest.fail(f"the server did not start: {Path(log.name).read_text()}")
            metrics = process.stdout.readline()
            address, metrics_address = (f"127.0.0.1:{line.split()[-1]}" for line in (ready, metrics))
            yield Server(process, address, metrics_address, log=Path(log.name))
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def server(colours: Path) -> Iterator[Server]:
    """A server of colours/1 with default limits."""
    with serving(colours) as running:
        yield running


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs programs that need torch."""
    running = Forks()
    yield running
    running.close()


@pytest.fixture(scope="session")
def evalmode(forks: Forks) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a user does: ``evalmode("train", "digits", ...)``.

    Commands that need torch run in forks of a process that has imported it, unless they have an ``env`` of their own.
    """

    def run(
        *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        if env is None and arguments[0] in ("train", "export", "report"):
            return forks.run_command(*arguments, cwd=cwd)
        command = [sys.executable, "-m", "evalmode", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=env)

    return run
