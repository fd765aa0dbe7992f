"""Ctrl-C at moments that are spread over a command, from the start of its process to its end.

It reaches every process of the command, as from a terminal. ``test_streams`` interrupts at events of Python instead.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from evalmode.artifact.repository import list_names, list_versions
from evalmode.cli import quickstart
from evalmode.runtime.loading import load_model
from training.errors import CommandKilled

Evalmode = Callable[..., subprocess.CompletedProcess[str]]

TORCH_CACHE = "torchinductor_"  # an empty folder that torch leaves in the temporary one, interrupted or not
FEW, MANY = (0.1, 0.5, 0.9), np.linspace(0, 1, 20)  # shares of the time that the whole command takes
# As the console script; a file says that Python has handed over, before which it may print a traceback of its own.
STARTED = "from evalmode.__main__ import main; import os; open(os.environ['STARTED'], 'w').close(); main()"
MOMENTS = [
    pytest.param("export", FEW, id="export-few", marks=pytest.mark.slow),
    pytest.param("export", MANY, id="export-many", marks=pytest.mark.slow),
    pytest.param("quickstart", MANY, id="quickstart-many", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, evalmode: Evalmode) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    done = evalmode("train", "digits", "--out", folder, "--epochs", 1, "--no-report")
    assert done.returncode == 0, done.stderr
    return folder


class Place:
    """Where a command works, and what it leaves there.

    Args:
        folder: An empty one.
        arguments: Of the command.
        result: The folder that it makes there.
        last: What it makes last in that.
    """

    def __init__(self, folder: Path, arguments: tuple[object, ...], result: str, last: str) -> None:
        self.folder = folder
        self.last = last
        self.arguments = list(map(str, arguments))
        self.result = folder / result
        self.temporary = folder / "temporary"
        self.started = folder / "started"
        self.group = 0  # of the processes that the command starts

    def interrupt(self, after_s: float) -> tuple[int, str]:
        """Run the command, and interrupt it after so many seconds; its exit code and output."""
        shutil.rmtree(self.result, ignore_errors=True)
        self.started.unlink(missing_ok=True)
        self.temporary.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", STARTED, *self.arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
            env={**os.environ, "TMPDIR": str(self.temporary), "STARTED": str(self.started)},
        )
        self.group = process.pid
        try:
            printed, _ = process.communicate(timeout=after_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            printed, _ = process.communicate(timeout=120)
        return process.returncode, printed

    def check(self, moment: str, code: int, printed: str) -> None:
        """Hold what an interrupted command says and leaves against what is promised."""
        if self.started.exists():
            assert code in (0, 130, -signal.SIGINT), (moment, code, printed)  # the last two are the same to a shell
            assert "Traceback" not in printed, (moment, printed)
            if code != 130:
                assert (self.result / self.last).exists(), (moment, code)
            else:
                assert "evalmode: interrupted\n" in printed or "stopped; the best weights" in printed, (moment, printed)
        assert [path for path in self.temporary.iterdir() if not path.name.startswith(TORCH_CACHE)] == [], moment
        assert [path for path in self.temporary.rglob("*") if not path.is_dir()] == [], moment
        left = [path for path in self.folder.rglob("*") if ".partial" in path.name or ".incoming" in path.name]
        assert left == [], moment
        for repository in (self.result, self.result / "models"):
            for name in list_names(repository):
                for version in list_versions(repository, name):
                    load_model(repository / name / str(version) / "model.onnx")  # whole, and replayed
        with pytest.raises(ProcessLookupError):  # no process is left
            os.killpg(self.group, 0)


@pytest.mark.parametrize(("command", "moments"), MOMENTS)
def test_ctrl_c_at_any_moment_leaves_nothing_half_done(
    command: str, moments: Sequence[float], run: Path, tmp_path: Path
) -> None:
    if command == "export":
        place = Place(tmp_path, ("export", run, "--repository", "models", "--name", "x"), "models", "x/1/model.onnx")
    else:
        place = Place(tmp_path, ("quickstart", "--out", "work", "--epochs", 1), "work", "answers.csv")
    started = time.monotonic()
    assert place.interrupt(3600)[0] == 0
    whole_s = time.monotonic() - started
    for share in moments:
        place.check(f"{share:.2f} of {whole_s:.2f} s", *place.interrupt(share * whole_s))


def run_with(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``evalmode check`` with a function ``work`` in its place."""
    code += (
        "\nimport sys\n"
        "from evalmode.__main__ import main\n"
        "from evalmode.cli import check\n"
        "check.check.callback = lambda **_: work()\n"
        "sys.argv = ['evalmode', 'check', sys.executable]\n"
        "main()"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # as in containers: what is said must not wait in a buffer
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)


def test_an_interrupt_in_a_destructor_is_not_forgotten() -> None:
    done = run_with(
        "import signal, time\n"
        "class Freed:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "def work():\n"
        "    Freed()\n"
        "    time.sleep(50)"
    )
    assert (done.returncode, done.stderr) == (130, "evalmode: interrupted\n")


@pytest.mark.parametrize(("work", "printed"), [("pass", ""), ("raise KeyboardInterrupt", "evalmode: interrupted\n")])
def test_an_interrupt_while_python_ends_is_no_traceback(work: str, printed: str) -> None:
    done = run_with(f"import atexit, signal\natexit.register(signal.raise_signal, signal.SIGINT)\ndef work(): {work}")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, printed)


def test_a_process_that_is_started_with_interrupts_held_back_takes_them() -> None:
    """As the quickstart starts its commands: one that comes before Python has handed over is not lost."""
    code = (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}); signal.raise_signal(signal.SIGINT)\n"
    )
    done = run_with(f"{code}def work(): pass")
    assert (done.returncode, done.stderr) == (130, "evalmode: interrupted\n")


class Ended:
    """A process that was interrupted when it was about to end."""

    def __init__(self, code: int) -> None:
        self.code = code

    def wait(self) -> int:
        signal.raise_signal(signal.SIGINT)
        return self.code


@pytest.mark.parametrize(
    ("code", "raised"), [(0, KeyboardInterrupt), (-signal.SIGINT, KeyboardInterrupt), (130, SystemExit)]
)
def test_the_quickstart_ends_with_the_command_that_is_interrupted(
    code: int, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "_start", lambda *_: Ended(code))
    with pytest.raises(raised) as ended:
        quickstart._command("train")
    assert raised is KeyboardInterrupt or ended.value.code == code  # type: ignore[attr-defined]


def test_the_quickstart_says_which_command_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "_start", lambda *_: subprocess.Popen(["sh", "-c", "kill -9 $$"]))
    with pytest.raises(CommandKilled, match=r"^evalmode train was ended by SIGKILL: was there too little memory\?$"):
        quickstart._command("train")
