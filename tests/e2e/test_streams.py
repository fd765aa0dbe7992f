"""Full, closed and unread standard output, names and labels in any encoding and locale, and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from evalmode.artifact.publishing import publish
from evalmode.client import Client
from tests.conftest import colour_artifact, encode, plain
from tests.serving.conftest import wait_until

LABELS = ("rød", "水", "blau")  # red, green, blue
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # as on a system without UTF-8
UNICODE = {"LC_ALL": "C.UTF-8"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a model, images in folders of its labels, one of a name that is not UTF-8, and a label file."""
    root = tmp_path_factory.mktemp("named") / os.fsdecode(b"caf\xe9")
    for _ in range(2):
        publish(root / "models", "colours", colour_artifact(LABELS))
    for label, pixel in zip(LABELS, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], strict=True):
        (root / "images" / label).mkdir(parents=True)
        (root / "images" / label / os.fsdecode(b"\xfcber.png")).write_bytes(encode(plain(pixel)))
    return root


def commands(place: Path) -> dict[str, tuple[object, ...]]:
    artifact, other = (place / "models" / "colours" / version / "model.onnx" for version in "12")
    return {
        "help": ("--help",),
        "train help": ("train", "--help"),
        "check": ("check", artifact),
        "check json": ("check", artifact, "--json"),
        "predict": ("predict", place / "images", "--file", artifact),
        "predict json": ("predict", place / "images", "--file", artifact, "--json"),
        "predict csv": ("predict", place / "images", "--file", artifact, "--csv"),
        "compare": ("compare", artifact, other, "--images", place / "images", "--page", place / "page.html"),
        "compare json": ("compare", artifact, other, "--images", place / "images", "--json"),
    }


COMMANDS = list(commands(Path()))


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "evalmode", *map(os.fspath, map(_as_text, arguments))]  # type: ignore[arg-type]
    return subprocess.run(command, timeout=120, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})  # type: ignore[call-overload]


def _as_text(argument: object) -> object:
    return argument if isinstance(argument, Path) else str(argument)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_standard_output_is_one_line_and_exit_code_2(name: str, place: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(*commands(place)[name], stdout=full)
        assert run(*commands(place)[name], stdout=full, stderr=full).returncode == 2
    errors = [line for line in done.stderr.decode(errors="replace").splitlines() if line.startswith("evalmode: ")]
    assert errors == ["evalmode: standard output: No space left on device: free some space or choose another place"]
    assert b"Traceback" not in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unread_output_is_not_an_error(name: str, place: Path) -> None:
    with unread() as pipe:
        done = run(*commands(place)[name], stdout=pipe)
    assert (done.returncode, b"Traceback" in done.stderr, b"evalmode: " in done.stderr) == (0, False, False)


@contextmanager
def unread() -> Iterator[IO[bytes]]:
    """A pipe whose reader has closed it."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        yield pipe


def test_a_failure_keeps_its_exit_code_if_the_output_is_not_read(place: Path, tmp_path: Path) -> None:
    """A gate such as ``check FILE | head -1`` with pipefail."""
    (tmp_path / "network.onnx").write_text("none")
    other = publish(tmp_path / "models", "colours", colour_artifact((LABELS[1], LABELS[0], LABELS[2])))
    images = ("--images", place / "images", "--max-changed", "2%")
    failing = [
        ("check", tmp_path / "network.onnx"),
        ("check", tmp_path / "network.onnx", "--json"),
        ("compare", place / "models/colours/1/model.onnx", other, *images),
        ("compare", place / "models/colours/1/model.onnx", other, *images, "--json"),
    ]
    for arguments in failing:
        with unread() as pipe:
            assert run(*arguments, stdout=pipe).returncode == 1, arguments


def test_training_continues_if_its_output_is_not_read(tmp_path: Path) -> None:
    with unread() as pipe:
        done = run("train", "digits", "--out", tmp_path / "run", "--epochs", 1, "--no-report", stdout=pipe)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "exact.safetensors").is_file()


def test_a_server_continues_if_its_output_is_not_read(place: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    command = [
        sys.executable,
        "-m",
        "evalmode",
        "serve",
        "--repository",
        os.fspath(place / "models"),
        "--host",
        address,
    ]
    with unread() as pipe:
        server = subprocess.Popen([*command, "--no-metrics", "--lame-duck", "0"], stdout=pipe)
    try:
        wait_until(lambda: (tmp_path / "socket").exists() or server.poll() is not None)
        with Client(address) as client:
            assert tuple(client.get_model().labels) == LABELS
        server.terminate()
        assert server.wait(30) == 0
    finally:
        server.kill()


def test_another_broken_pipe_is_an_error() -> None:
    code = (
        "from evalmode.cli import rollback\n"
        "def fail(*_, **__): raise BrokenPipeError(32, 'Broken pipe')\n"
        "rollback.rollback.callback = fail\n"
        "from evalmode.cli.main import main\n"
        "main(['rollback', 'x', '--repository', '.'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "evalmode: Broken pipe: the process that reads it has ended\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_with_a_closed_output_no_file_is_overwritten(name: str, place: Path) -> None:
    """The first opened file would get descriptor 1, and the output would be written into it."""
    whole = (place / "models/colours/1/model.onnx").read_bytes()
    command = [sys.executable, "-m", "evalmode", *map(str, commands(place)[name])]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, timeout=120)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert (place / "models/colours/1/model.onnx").read_bytes() == whole


@pytest.mark.parametrize("locale", [ASCII, UNICODE], ids=["ASCII", "UTF-8"])
@pytest.mark.parametrize("name", COMMANDS)
def test_names_and_labels_of_any_encoding_work_in_any_locale(name: str, locale: dict[str, str], place: Path) -> None:
    done = run(*commands(place)[name], env={**os.environ, **locale})
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    if name in ("predict", "predict csv"):
        assert b"caf\xe9/images" in done.stdout  # the bytes of the name
        assert "水".encode() in done.stdout
    if name.endswith("json") and name.startswith("predict"):
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert {row["scores"][0]["label"] for row in rows} == set(LABELS)
        assert {Path(row["image"]).parent.name == row["scores"][0]["label"] for row in rows} == {True}


@pytest.mark.parametrize("locale", [ASCII, UNICODE], ids=["ASCII", "UTF-8"])
@pytest.mark.parametrize("path", ["no-such", os.fsdecode(b"no-such-\xe9"), "no-such-水"])
def test_an_error_with_any_file_name_is_one_line(path: str, locale: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / path).write_text("no artifact")
    for arguments in (("rollback", path, "--repository", path), ("predict", path, "--file", path)):
        done = run(*arguments, cwd=tmp_path, env={**os.environ, **locale})
        assert (done.returncode, done.stdout) == (2, b""), done.stderr
        assert done.stderr.startswith(b"evalmode: "), done.stderr
        assert done.stderr.count(b"\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("typed", "suggested"), [("trian", "train"), ("Export", "export"), ("rolback", "rollback"), ("certfy", "certify")]
)
def test_the_error_of_a_mistyped_command_suggests_the_nearest(typed: str, suggested: str) -> None:
    done = run(typed)
    assert done.returncode == 2
    assert f"No such command '{typed}': did you mean '{suggested}'?" in done.stderr.decode()


@pytest.mark.parametrize("options", [("-X", "utf8=0"), ("-X", "utf8=0", "-E"), ("-E",), ()])
def test_the_command_starts_again_in_utf8_mode_once(options: tuple[str, ...], tmp_path: Path) -> None:
    """Even if an option keeps Python from the mode: otherwise it would start again forever."""
    label = os.fsdecode("no-such-ü".encode())
    command = [sys.executable, *options, "-m", "evalmode", label, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, **ASCII}, capture_output=True, timeout=30)
    assert (done.returncode, "No such command 'no-such-ü'" in done.stderr.decode()) == (2, True), done.stderr


TORCH = ("train", "export")
MOMENTS = 12  # number of interrupts of each command

# Ctrl-C: the process sends itself SIGINT at the Nth audit event of Python, such as an import or an opened file.

INTERRUPTING = """
import os, signal, sys
count, last = 0, int(sys.argv.pop(1))

def on_event(event, arguments):
    global count
    if os.getpid() == {parent} or event.startswith(("sys._getframe", "object.")):
        return
    count += 1
    if count == last:
        os.kill(os.getpid(), signal.SIGINT)

from evalmode.__main__ import main
sys.addaudithook(on_event)
try:
    main()
finally:
    print(count, file=open(os.environ["COUNT"], "w"))
"""


@pytest.mark.parametrize(
    "name", ["check", "predict", "compare", "certify", *(pytest.param(name, marks=pytest.mark.slow) for name in TORCH)]
)
def test_an_interrupt_at_any_moment_is_one_line_and_leaves_no_incomplete_file(
    name: str, place: Path, tmp_path: Path
) -> None:
    arguments = _interrupted(name, place, tmp_path)
    environment = {**os.environ, "COUNT": str(tmp_path / "count")}
    code = INTERRUPTING.replace("{parent}", str(os.getpid()))

    def interrupt(event: int) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", code, str(event), *map(os.fspath, map(_as_text, arguments))]  # type: ignore[arg-type]
        return subprocess.run(command, capture_output=True, timeout=120, env=environment)

    whole = interrupt(-1)
    assert whole.returncode == 0, whole.stderr
    events = int((tmp_path / "count").read_text())
    assert events > 100
    for event in [1, *range(events // MOMENTS, events, events // MOMENTS)]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        done = interrupt(event)
        errors = done.stderr.decode(errors="replace")
        assert done.returncode in (130, 0), (event, errors)  # 0: the work was done already
        if done.returncode == 130:
            stopped = b"stopped; the best weights so far are in" in done.stdout
            assert stopped or errors.splitlines()[-1:] == ["evalmode: interrupted"], (event, errors)
        assert "Traceback" not in errors, (event, errors)
        assert not [path for path in tmp_path.rglob("*") if ".partial" in path.name or ".incoming" in path.name], event


def test_an_interrupt_of_python_m_evalmode_is_one_line() -> None:
    code = (
        "import runpy, sys\n"
        "from evalmode.cli import main\n"
        "def interrupt(*_): raise KeyboardInterrupt\n"
        "main.main = interrupt\n"
        "runpy.run_module('evalmode', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "evalmode: interrupted\n")


def _interrupted(name: str, place: Path, folder: Path) -> tuple[object, ...]:
    if name == "certify":
        root = Path(__file__).parents[1] / "foreign"
        (folder / "images").mkdir()
        for digit in range(10):
            (folder / "images" / str(digit)).mkdir()
            (folder / "images" / str(digit) / "1.png").write_bytes(encode(plain(digit * 20, (8, 8), "L")))
        (folder / "labels.txt").write_text("\n".join(map(str, range(10))))
        adopt = ("--images", folder / "images", "--labels", folder / "labels.txt", "--scale", "0,1", "--allow-guessing")
        return ("certify", root / "keras.onnx", *adopt, "--repository", folder / "out", "--name", "keras")
    if name == "train":
        return ("train", "digits", "--out", folder / "out", "--epochs", 1)
    if name == "export":
        trained = run("train", "digits", "--out", folder / "run", "--epochs", 1, "--no-report")
        assert trained.returncode == 0, trained.stderr
        return ("export", folder / "run", "--repository", folder / "out", "--name", "x")
    arguments = commands(place)[name]
    return (*arguments[:-1], folder / "page.html") if "--page" in arguments else arguments
