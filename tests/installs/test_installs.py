"""Every installation that README lists, from a wheel in a separate environment.

Each command works there, or names the missing extra. ``make test-installs`` tests the small installations,
``test-slow`` those that download torch or CUDA.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evalmode.artifact.publishing import publish
from evalmode.cli.main import COMMANDS
from tests.conftest import Server, colour_artifact, encode, plain

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| .+? \| `pip install '?\.(?:\[([\w,-]+)\])?'?`", (ROOT / "README.md").read_text("utf-8"), re.M)
QUICK = ("", "serve")
TRAINING = ("quickstart", "train", "export", "report")
PIP = (sys.executable, "-m", "pip")


@dataclass(frozen=True)
class Installed:
    """An environment with evalmode, and a folder with the input of its commands."""

    extras: tuple[str, ...]
    python: Path
    folder: Path

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the console script ``evalmode`` of this environment."""
        command: list[str | Path] = [self.python.with_name("evalmode"), *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (built,) = folder.glob("evalmode-*.whl")
    return built


def _mark(extras: str) -> object:
    mark = pytest.mark.installs if extras in QUICK else pytest.mark.slow
    return pytest.param(extras, marks=mark, id=extras or "bare")


@pytest.fixture(scope="module", params=map(_mark, ROWS))
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    extras, folder = request.param, tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "environment"], check=True)
    python = folder / "environment" / "bin" / "python"
    requirement = f"{wheel}[{extras}]" if extras else str(wheel)
    constraints = str(ROOT / "constraints.txt")
    pip = [*PIP, "--python", str(python), "install", "--quiet", "--constraint", constraints, requirement]
    subprocess.run(pip, check=True)
    _prepare(folder)
    return Installed(tuple(extras.split(",")) if extras else (), python, folder)


def _prepare(folder: Path) -> None:
    """Write models, images, and the labels of a network of another tool."""
    for _ in range(2):
        publish(folder / "models", "colours", colour_artifact())
    for colour, pixel in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}.items():
        (folder / "colours" / colour).mkdir(parents=True)
        (folder / "colours" / colour / "1.png").write_bytes(encode(plain(pixel)))
    rng = np.random.default_rng(0)
    for digit in range(10):
        (folder / "digits-images" / str(digit)).mkdir(parents=True)
        noise = rng.integers(0, 256, (8, 8)).astype(np.uint8)
        Image.fromarray(noise).save(folder / "digits-images" / str(digit) / "1.png")
    (folder / "labels.txt").write_text("\n".join(map(str, range(10))))


@pytest.mark.installs
def test_readme_lists_every_installation() -> None:
    assert ROWS[:2] == ["", "serve"]
    assert {"serve-cuda", "serve,native", "serve,train", "serve,train,timm,heic", "all"} == set(ROWS[2:])


def test_every_command_has_help(installed: Installed) -> None:
    for arguments in (("--help",), ("--version",), *((command, "--help") for command in COMMANDS)):
        done = installed.run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
    bare = installed.run()
    assert bare.returncode == 2
    assert "quickstart" in bare.stderr
    assert "Traceback" not in bare.stderr


def test_every_command_works_or_names_its_extra(installed: Installed, server: Server) -> None:
    artifact, other = (installed.folder / "models" / "colours" / version / "model.onnx" for version in "12")
    image, images = installed.folder / "colours" / "red" / "1.png", installed.folder / "colours"
    certify_options = ("--images", "digits-images", "--labels", "labels.txt", "--scale", "0,1", "--allow-guessing")
    commands: dict[str, tuple[object, ...]] = {
        "train": ("digits", "--out", "run", "--epochs", 1),
        "export": ("run", "--repository", "models", "--name", "digits"),
        "report": ("run",),
        "quickstart": ("--epochs", 1),
        "check": (artifact,),
        "certify": (
            ROOT / "tests" / "foreign" / "keras.onnx",
            *certify_options,
            "--repository",
            "models",
            "--name",
            "keras",
        ),
        "compare": (artifact, other, "--images", images, "--page", "page.html"),
        "serve": ("--repository", "nowhere"),
        "predict": (image, "--address", server.address),
        "bench": (server.address, "--seconds", 0.2, "--in-flight", 1),
        "rollback": ("colours", "--repository", "models"),
    }
    assert commands.keys() == COMMANDS.keys()
    (installed.folder / "run").mkdir(exist_ok=True)
    has_serve = bool({"serve", "serve-cuda", "all"} & set(installed.extras))
    has_train = bool({"train", "all"} & set(installed.extras))
    for command, arguments in commands.items():
        done = installed.run(command, *arguments)
        assert "Traceback" not in done.stderr, (command, done.stderr)
        needs_serve = command not in ("predict", "rollback")
        if (command in TRAINING and not has_train) or (needs_serve and not has_serve):
            extra = COMMANDS[command][1]
            assert done.returncode == 2, (command, done.stderr)
            assert re.fullmatch(
                rf"evalmode: {command} needs the Python package '\w+': pip install 'evalmode\[{extra}\]'\n", done.stderr
            ), done.stderr
        elif command == "serve":
            assert (done.returncode, "nowhere" in done.stderr) == (2, True), done.stderr
        else:
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    if has_serve:
        assert installed.run("predict", image, "--file", artifact).returncode == 0


def test_the_native_transport_starts_if_it_is_installed(installed: Installed) -> None:
    if "serve" not in installed.extras:
        pytest.skip("needs the extra serve")
    command = [installed.python.with_name("evalmode"), "serve", "--repository", "models", "--port", "0", "--no-metrics"]
    options = {"cwd": installed.folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--transport", "native"], **options) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.kill()
        logged = process.stderr.read()
    if "native" in installed.extras:
        assert first.startswith("serving colours"), logged
    else:
        assert "pip install 'evalmode[native]'" in logged


def test_the_client_is_in_every_installation(installed: Installed, server: Server) -> None:
    code = (
        "import sys; from evalmode.client import Client\n"
        f"with Client({server.address!r}) as client: print(client.predict('colours/red/1.png').label)\n"
        "print([name for name in ('numpy', 'onnxruntime', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([installed.python, "-c", code], cwd=installed.folder, capture_output=True, text=True)
    assert done.stdout == "red\n[]\n", done.stderr
