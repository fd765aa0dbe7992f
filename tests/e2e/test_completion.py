"""Shells complete commands, options and values, as docs/installing.md describes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evalmode.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]


def complete(shell: str, *words: str) -> list[str]:
    """The completions of the last of these words."""
    place = str(len(words) - 1) if shell != "fish" else words[-1]
    environment = {"COMP_WORDS": " ".join(words), "COMP_CWORD": place, "_EVALMODE_COMPLETE": f"{shell}_complete"}
    command = [sys.executable, "-c", "from evalmode.cli.main import main; main()"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return re.split(r"[,\n\t]", done.stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([""], set(COMMANDS)),
        (["ser"], {"serve"}),
        (["serve", "--log"], {"--log-format", "--log-level"}),
        (["serve", "--transport", ""], {"grpcio", "native"}),
        (["train", "--re"], {"--resume"}),
    ],
)
def test_incomplete_words_are_completed(shell: str, words: list[str], offered: set[str]) -> None:
    assert offered <= set(complete(shell, "evalmode", *words))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_line_generates_a_script_for_the_shell(shell: str) -> None:
    text = (ROOT / "docs" / "installing.md").read_text()
    assert re.search(rf"_EVALMODE_COMPLETE={shell}_source evalmode", text)
    if shell == "bash" and shutil.which("bash"):
        environment = {**os.environ, "_EVALMODE_COMPLETE": "bash_source"}
        command = [sys.executable, "-c", "from evalmode.cli.main import main; main()"]
        script = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        subprocess.run(["bash", "-euc", f"{script}\ncomplete -p evalmode"], check=True, capture_output=True)
