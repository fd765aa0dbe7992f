"""README's commands in their order, as they stand there, in an empty directory with photos of mixed sizes."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from sklearn.datasets import load_digits

from evalmode.artifact.repository import list_versions
from training.run import Run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
STORY = README.partition("## Two commands")[2].partition("## Compared with other tools")[0]
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", STORY, re.S) for line in block.splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", STORY, re.S)
SHOWN = [line for block in re.findall(r"```text\n(.*?)```", STORY, re.S) for line in block.splitlines()]  # as printed
ELSEWHERE = ("python3 -m venv", "pip install")  # the installs have tests of their own
PHOTOS, NEW = 12, 3  # of a label

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # three trainings and exports of a network for photos


class Story:
    """A directory, and README's environment.

    Attributes:
        folder: The directory.
        environment: Options that take less time, and ports of its own; the commands stay as they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "EVALMODE_TRAIN_FINE_TUNE": "none",
            "EVALMODE_SERVE_PORT": str(self.port),
            "EVALMODE_SERVE_METRICS_PORT": "0",
            "EVALMODE_PREDICT_ADDRESS": f"127.0.0.1:{self.port}",
        }

    def run(self, line: str) -> str:
        """Run a line as a shell does, and return what it printed."""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, (line, done.stderr)
        return done.stdout

    @contextmanager
    def serving(self, line: str) -> Iterator[Callable[[str], None]]:
        """The server that a line starts, as in another terminal; yields what waits for a text in its output."""
        log = self.folder / "serve.log"
        with log.open("w") as output:
            command = shlex.split(line, comments=True)
            server = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

        def wait_for(text: str) -> None:
            until = time.monotonic() + 60
            while text not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)

        try:
            wait_for("serving waste on port")
            yield wait_for
            server.terminate()
            assert server.wait(60) == 0, log.read_text()
        finally:
            server.kill()
            server.wait()


def take_photos(folder: Path) -> None:
    """Images of digits as large as photos, each of a size of its own, in folders named by label; and bottle.jpg.

    Some are in new-photos, apart from the others.
    """
    chance = np.random.default_rng(0)
    digits = load_digits()
    for digit in range(10):
        (folder / "photos" / str(digit)).mkdir(parents=True)
        (folder / "new-photos" / str(digit)).mkdir(parents=True)
        for number, picture in enumerate(digits.images[digits.target == digit][: PHOTOS + NEW]):
            photo = Image.fromarray(np.rint(picture * (255 / 16)).astype(np.uint8)).convert("RGB")
            width, height = chance.integers(140, 260, 2)
            place = folder / ("photos" if number < PHOTOS else "new-photos") / str(digit)
            photo.resize((width, height)).save(place / f"{number}.jpg", quality=95)
    photo.resize((190, 150)).save(folder / "bottle.jpg")


def bring_networks(folder: Path) -> None:
    """Files of other tools: an image classifier with its labels, and a network of tensors with inputs."""
    (folder / "keras.onnx").write_bytes((ROOT / "tests/foreign/keras.onnx").read_bytes())
    (folder / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 4)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "forecast", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "forecast.onnx")
    np.savez(folder / "inputs.npz", x=np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32))


def test_the_commands_work_in_their_order_and_leave_what_is_promised(tmp_path: Path) -> None:
    lines = [line for line in COMMANDS if not line.startswith(ELSEWHERE)]
    assert len(COMMANDS) - len(lines) == len(ELSEWHERE)
    assert {line.split()[0] for line in lines} == {"evalmode"}
    story = Story(tmp_path)
    take_photos(tmp_path)
    bring_networks(tmp_path)
    serve = next(number for number, line in enumerate(lines) if line.startswith("evalmode serve "))
    before = "".join(story.run(line) for line in lines[:serve])
    assert (tmp_path / "run/report.html").stat().st_size
    assert Run.open(tmp_path / "run").config.recipe.network == "efficientnet-lite0"
    assert list_versions(tmp_path / "models", "waste") == [1]
    with story.serving(lines[serve]) as wait_for:
        printed: list[str] = []
        for line in lines[serve + 1 :]:
            printed.append(story.run(line))
            if line.startswith("evalmode export run2 "):
                assert list_versions(tmp_path / "models", "waste") == [1, 2]
                wait_for("waste/2")
        words = {line.split()[0] for line in SHOWN if line[0].isalpha()}
        shown = {line.split()[0] for line in (before + printed[0]).splitlines() if line}
        assert {"data", "test", "agreement", "digest", "model"} <= words <= shown
        by_server, by_file = ([line for line in one.splitlines() if "model " not in line] for one in printed[:2])
        assert by_server == by_file
        assert any("bottle.jpg" in line for line in by_server)
        assert (tmp_path / "changes.html").stat().st_size
        assert (tmp_path / "map.png").stat().st_size
        assert list_versions(tmp_path / "models", "waste") == [1]
        for name in ("keras", "forecast"):
            assert list_versions(tmp_path / "models", name) == [1]
        assert len(PYTHON) == 2
        for block in PYTHON:
            code = block.replace("127.0.0.1:8001", f"127.0.0.1:{story.port}")
            *_, last = story.run(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}").splitlines()
            assert set("0123456789") & set(last.split())  # the predicted label
