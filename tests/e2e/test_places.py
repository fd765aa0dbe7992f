"""All commands in unsuitable places: full, read-only, forbidden, a file instead of a folder, not UTF-8.

Full and read-only places are small tmpfs file systems in a separate mount namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from evalmode.artifact.publishing import publish
from evalmode.cli.main import COMMANDS
from tests.conftest import colour_artifact, encode, plain

ROOT = Path(__file__).parents[2]
UNPRIVILEGED = (
    "setpriv",
    "--bounding-set=-all",
    "--inh-caps=-all",
)  # root without the capabilities that override permissions
PLACES = ("full", "nearly full", "read-only", "forbidden", "a file", "missing", "not UTF-8")
NAMESPACE = ("unshare", "--mount") if os.getuid() == 0 else ("unshare", "--map-root-user", "--mount")
MOUNT = """set -e
place=$1 seed=$2 kind=$3
shift 3
mount -t tmpfs -o size=64m none "$place"
cp -r "$seed"/. "$place"
case $kind in
  full) head -c 64m /dev/zero > "$place"/filler 2>/dev/null || true ;;
  "nearly full") head -c 64m /dev/zero > "$place"/filler 2>/dev/null || true; truncate -s -24576 "$place"/filler ;;
  read-only) mount -o remount,ro "$place" ;;
esac
exec "$@"
"""


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of each place: two versions of a model, a run, images, a network of another tool and its labels."""
    seed = tmp_path_factory.mktemp("seed")
    for _ in range(2):
        publish(seed / "models", "colours", colour_artifact())
    for colour, pixel in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}.items():
        (seed / "images" / colour).mkdir(parents=True)
        for number in range(12):
            (seed / "images" / colour / f"{number}.png").write_bytes(
                encode(plain(tuple(value * (240 - number) // 255 for value in pixel), (8, 8)))
            )
    for digit in range(10):
        (seed / "numbers" / str(digit)).mkdir(parents=True)
        (seed / "numbers" / str(digit) / "1.png").write_bytes(encode(plain(digit * 20, (8, 8), "L")))
    (seed / "labels.txt").write_text("\n".join(map(str, range(10))))
    shutil.copy(ROOT / "tests" / "foreign" / "keras.onnx", seed)
    trained = _evalmode(("train", "digits", "--out", "run", "--epochs", "1", "--no-report"), seed)
    assert trained.returncode == 0, trained.stderr
    return seed


def _evalmode(
    arguments: tuple[str, ...], folder: Path, before: tuple[object, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    command = [*map(os.fspath, before), sys.executable, "-m", "evalmode", *arguments]  # type: ignore[arg-type]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=120
    )


SEED, PLACE = "{seed}", "{place}"
ADOPT = (*("--images", f"{SEED}/numbers", "--labels", f"{SEED}/labels.txt", "--scale", "0,1"), "--allow-guessing")
OLD, NEW = (f"{SEED}/models/colours/{version}/model.onnx" for version in (1, 2))
WRITING: dict[str, tuple[str, ...]] = {
    "train": ("train", "digits", "--out", f"{PLACE}/new/run", "--epochs", "1"),
    "export": ("export", f"{SEED}/run", "--repository", f"{PLACE}/models", "--name", "x"),
    "report": ("report", f"{PLACE}/run"),
    "quickstart": ("quickstart", "--out", f"{PLACE}/quick", "--epochs", "1"),
    "certify": ("certify", f"{SEED}/keras.onnx", *ADOPT, "--repository", f"{PLACE}/models", "--name", "x"),
    "compare": ("compare", OLD, NEW, "--images", f"{SEED}/images", "--page", f"{PLACE}/page.html"),
    "rollback": ("rollback", "colours", "--repository", f"{PLACE}/models"),
}
READING: dict[str, tuple[str, ...]] = {
    "train": ("train", f"{PLACE}/images", "--out", "{free}/run", "--epochs", "1"),
    "export": ("export", f"{PLACE}/run", "--repository", "{free}/models", "--name", "x"),
    "check": ("check", f"{PLACE}/models/colours/1/model.onnx"),
    "certify": (
        *("certify", f"{PLACE}/keras.onnx", "--images", f"{PLACE}/numbers", "--labels", f"{PLACE}/labels.txt"),
        *("--scale", "0,1", "--allow-guessing", "--repository", "{free}/models", "--name", "x"),
    ),
    "certify images": (
        *("certify", f"{SEED}/keras.onnx", "--images", f"{PLACE}/numbers", "--labels", f"{SEED}/labels.txt"),
        *("--scale", "0,1", "--allow-guessing", "--repository", "{free}/models", "--name", "x"),
    ),
    "compare": ("compare", OLD, NEW, "--images", f"{PLACE}/images"),
    "predict": ("predict", f"{PLACE}/images", "--file", OLD),
    "predict token": ("predict", f"{SEED}/images", "--token-file", f"{PLACE}/labels.txt"),
    "serve": ("serve", "--repository", f"{PLACE}/models", "--port", "1", "--host", "203.0.113.1", "--no-metrics"),
    "serve tokens": ("serve", "--repository", f"{SEED}/models", "--tokens", f"{PLACE}/labels.txt", "--no-metrics"),
    "bench": ("bench", "127.0.0.1:1", "--image", f"{PLACE}/images/red/1.png"),
}
WORKS_WHEN_FULL = ("rollback",)  # one rename
FAILS_ANYWAY = (
    "predict token",
    "serve",
    "serve tokens",
    "bench",
)  # no server, an unavailable address, tokens that are too short


def test_the_matrix_has_every_command() -> None:
    assert {arguments[0] for arguments in (*WRITING.values(), *READING.values())} == COMMANDS.keys()


# Commands that import torch take seconds. These cases always run; the others are marked slow.
TORCH = ("train", "export", "report", "quickstart")
ALWAYS = (("train", "forbidden"), ("export", "read-only"), ("report", "full"))


def _list_cases(commands: Iterable[str], places: Iterable[str]) -> list[Any]:
    """Every command in every place."""
    return [
        pytest.param(*case, marks=[pytest.mark.slow] if case[0] in TORCH and case not in ALWAYS else [])
        for case in product(commands, places)
    ]


@pytest.mark.parametrize(("command", "place"), _list_cases(WRITING, PLACES))
def test_an_output_that_cannot_be_written_is_one_line(command: str, place: str, tmp_path: Path, seed: Path) -> None:
    done = _run(WRITING[command], place, tmp_path, seed)
    succeeds = place == "not UTF-8" or (place in ("full", "nearly full") and command in WORKS_WHEN_FULL)
    succeeds |= place == "missing" and command in (
        "train",
        "export",
        "certify",
        "quickstart",
    )  # these commands create folders
    succeeds |= place == "nearly full" and command == "compare"  # the page is small
    _check(done, succeeds)


@pytest.mark.parametrize(("command", "place"), _list_cases(READING, ["forbidden", "a file", "missing", "not UTF-8"]))
def test_an_input_that_cannot_be_read_is_one_line(command: str, place: str, tmp_path: Path, seed: Path) -> None:
    done = _run(READING[command], place, tmp_path, seed)
    _check(done, succeeds=place == "not UTF-8" and command not in FAILS_ANYWAY)


def _run(arguments: tuple[str, ...], place: str, root: Path, seed: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a new place, and check that it leaves no incomplete file."""
    folder, free = root / "place", root / "free"
    before: tuple[object, ...] = ()
    free.mkdir()
    match place:
        case "full" | "nearly full" | "read-only":
            folder.mkdir()
            if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
                pytest.skip("no mount namespaces here")
            before = (*NAMESPACE, "sh", "-c", MOUNT, "sh", folder, seed, place)
        case "forbidden":
            shutil.copytree(seed, folder)
            folder.chmod(0)
            before = UNPRIVILEGED
        case "a file":
            folder.write_text("no folder")
        case "not UTF-8":
            folder = root / os.fsdecode(b"caf\xe9")
            shutil.copytree(seed, folder)
    done = _evalmode(tuple(one.format(place=folder, seed=seed, free=free) for one in arguments), free, before)
    if place == "forbidden":
        folder.chmod(0o700)
    assert [path for path in root.rglob("*") if ".partial" in path.name or ".incoming" in path.name] == []
    return done


def _check(done: subprocess.CompletedProcess[str], succeeds: bool) -> None:
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode == (0 if succeeds else 2), (done.stdout, done.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith(("evalmode: ", "Error: "))]
    assert len(errors) == (0 if succeeds else 1), done.stderr
