"""The main workflow as a user types it: train, export, serve, predict."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.tensorboard import SummaryWriter

import evalmode as package
from evalmode.cli.train import train
from evalmode.client import Client
from tests.conftest import serving

Evalmode = Callable[..., subprocess.CompletedProcess[str]]
TRAIN, TEST = 60, 20  # images of a class in the slice


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/<label>/*.jpg and test/<label>/*.jpg: made from digits, or a part of an archive.

    EVALMODE_TEST_IMAGES names the archive: a .tar.gz whose only folder has train/ and test/.
    """
    root = tmp_path_factory.mktemp("jpegs")
    archive = os.environ.get("EVALMODE_TEST_IMAGES")
    if archive:
        _extract_slice(Path(archive), root)
        return root
    bunch = load_digits()
    for digit in range(10):
        pictures = bunch.images[bunch.target == digit][: TRAIN + TEST]
        for index, picture in enumerate(pictures):
            folder = root / ("train" if index < TRAIN else "test") / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.rint(picture * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").resize((16, 16)).save(folder / f"{index:04d}.jpg", quality=95)
    return root


def _extract_slice(archive: Path, root: Path) -> None:
    wanted = {"train": TRAIN, "test": TEST}
    taken: dict[tuple[str, str], int] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            _, *parts = Path(member.name).parts
            if not member.isfile() or len(parts) != 3:
                continue
            key = (parts[0], parts[1])
            taken[key] = taken.get(key, 0) + 1
            if taken[key] <= wanted[parts[0]]:
                path = root.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                file = tar.extractfile(member)
                assert file is not None
                path.write_bytes(file.read())


@pytest.fixture(scope="module")
def story(jpegs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run/ and models/pets/1, trained briefly on the JPEG folder and exported."""
    folder = tmp_path_factory.mktemp("story")
    for command in (
        ("train", jpegs, "--out", "run", "--epochs", 6, "--batch-size", 8),
        ("export", "run", "--repository", "models", "--name", "pets"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "evalmode", *map(str, command)], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        (folder / f"{command[0]}.txt").write_text(done.stdout)
    return folder


def test_training_prints_its_data_and_progress(story: Path) -> None:
    output = (story / "train.txt").read_text()
    assert re.search(r"data .*: 540 train, 60 val, 200 test; 10 labels", output)
    assert len(re.findall(r"^ +\d +\d+\.\d{4} +0\.\d{4} +0\.\d{4} +\d+\.\d$", output, re.MULTILINE)) == 6
    assert re.search(r"test +0\.\d{4} \(0\.\d{4} to 0\.\d{4} with 95% confidence, 200 images\), read once", output)


def test_the_accuracy_is_better_than_chance(story: Path) -> None:
    figures = [json.loads(line) for line in (story / "run" / "metrics.jsonl").read_text().splitlines()]
    assert figures[-1]["test_accuracy"] > 0.2  # ten labels


def test_the_server_has_the_accuracy_that_training_reported(story: Path, jpegs: Path, evalmode: Evalmode) -> None:
    figures = json.loads((story / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    with serving(story / "models") as server:
        done = evalmode("predict", jpegs / "test", "--address", server.address, "--csv", "--top-k", 2)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 400
    assert f"accuracy {figures['test_accuracy']:.4f}: " in done.stderr


def test_a_file_and_the_server_return_the_same_bits(story: Path, jpegs: Path, evalmode: Evalmode) -> None:
    images = sorted((jpegs / "test").rglob("*.jpg"))[:30]
    artifact = story / "models" / "pets" / "1" / "model.onnx"
    with serving(story / "models") as server:
        server_output = evalmode("predict", *images, "--address", server.address, "--json")
        with Client(server.address) as client:
            answers = [client.predict(image) for image in images]
    file_output = evalmode("predict", *images, "--file", artifact, "--json")
    loaded = package.load(artifact)
    server_answers, file_answers = (
        [json.loads(line) for line in done.stdout.splitlines()] for done in (server_output, file_output)
    )
    assert len(server_answers) == 30
    assert [(a["scores"], a["digest"]) for a in server_answers] == [(a["scores"], a["digest"]) for a in file_answers]
    assert [loaded.predict(image).scores for image in images] == [answer.scores for answer in answers]


def test_an_export_from_another_directory_has_the_same_bytes(story: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    done = evalmode("export", story / "run", "--repository", tmp_path / "elsewhere", "--name", "cats", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = story / "models/pets/1/model.onnx", tmp_path / "elsewhere/cats/1/model.onnx"
    assert hashlib.sha256(first.read_bytes()).hexdigest() == hashlib.sha256(second.read_bytes()).hexdigest()


def test_an_export_is_refused_when_the_data_changed(
    story: Path, jpegs: Path, tmp_path: Path, evalmode: Evalmode
) -> None:
    changed = tmp_path / "changed"
    for path in jpegs.rglob("*.jpg"):
        target = changed / path.relative_to(jpegs)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    first, second = itertools.islice(sorted((changed / "train").rglob("*.jpg")), 2)
    first.write_bytes(second.read_bytes())
    done = evalmode("export", story / "run", "--repository", tmp_path / "models", "--name", "x", "--data", changed)
    assert done.returncode == 2
    assert "digest differs" in done.stderr
    assert not (tmp_path / "models").exists()


def test_ctrl_c_leaves_a_usable_run(tmp_path: Path, evalmode: Evalmode) -> None:
    listen = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'evalmode'; "
    start = listen + "from evalmode.cli.main import main; main()"  # a shell makes background jobs ignore the signal
    command = [sys.executable, "-c", start, "train", "digits", "--out", "run", "--epochs", "1000"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("    2 "):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the best weights so far are in run" in output
    done = evalmode("export", "run", "--repository", "models", "--name", "digits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_during_the_events_of_an_epoch_stops_after_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Interrupted(SummaryWriter):
        def add_scalar(self, *args: Any, **kwargs: Any) -> None:
            if not written:
                signal.raise_signal(signal.SIGINT)
            super().add_scalar(*args, **kwargs)
            written.append(args[0])

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", Interrupted)
    before = signal.getsignal(signal.SIGINT)
    ended = CliRunner().invoke(train, ["digits", "--out", str(tmp_path / "run"), "--epochs", "2"])
    assert ended.exit_code == 130, ended.output
    assert written == ["loss", "train_accuracy", "val_accuracy", "val_loss", "learning_rate"]
    assert signal.getsignal(signal.SIGINT) is before


def test_quickstart_runs_the_whole_workflow(tmp_path: Path, evalmode: Evalmode) -> None:
    done = evalmode("quickstart", "--epochs", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    shown = [line.split()[2] for line in lines if line.startswith("$ evalmode ")]
    assert shown == ["train", "export", "serve", "predict", "predict"]
    assert "SIGTERM: the server drained and exited with 0" in lines
    assert len((tmp_path / "evalmode-quickstart" / "answers.csv").read_text().splitlines()) == 1 + 359 * 5


@pytest.mark.slow
def test_quickstart_on_photos_serves_what_training_measured(tmp_path: Path, evalmode: Evalmode) -> None:
    chance = np.random.default_rng(0)
    for label, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            pixels = chance.integers(0, 90, (120, 100 + number, 3), np.uint8)
            pixels[..., channel] += 150
            suffix = "tif" if number % 2 else "jpg"  # a server does not decode TIFF
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.{suffix}")
    done = evalmode("quickstart", "--photos", "photos", "--minutes", 0.1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    shown = [line.split()[2] for line in lines if line.startswith("$ evalmode ")]
    assert shown == ["train", "export", "serve", "predict", "predict"]
    assert "SIGTERM: the server drained and exited with 0" in lines
    folder = tmp_path / "evalmode-quickstart"
    held_out = list((folder / "held-out").glob("*/*"))
    assert {path.suffix for path in held_out} <= {".jpg", ".png"}
    trained = package.Run.open(folder / "run")
    assert trained.config.recipe.network == "efficientnet-lite0"
    assert trained.config.minutes == 0.1
    found = re.findall(r"^accuracy ([0-9.]+): \d+ of (\d+) images", done.stderr, re.M)
    assert found[-1] == (f"{trained.read_result().test_accuracy:.4f}", str(len(held_out)))


@pytest.mark.parametrize("options", [("--minutes", 1), ("--photos", ".", "--epochs", 1)])
def test_quickstart_refuses_an_option_without_effect(
    options: tuple[object, ...], tmp_path: Path, evalmode: Evalmode
) -> None:
    done = evalmode("quickstart", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(options[-2]) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_quickstart_on_photos_that_do_not_exist_is_one_line(tmp_path: Path, evalmode: Evalmode) -> None:
    done = evalmode("quickstart", "--photos", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "evalmode-quickstart").exists()
