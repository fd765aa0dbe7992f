"""Runs the code blocks of a Markdown page in their order, and compares the shown outputs with the real ones.

    python -m tests.examples.pages docs/tutorials/PAGE.md   writes the real outputs into the page

A block with a title is written to a file of that name. All other blocks ``sh`` run in one shell, in an empty folder. A
block ``text`` that follows one shows its output, standard error included; a line ``...`` stands for any lines.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.examples.shown import align, list_differences, pair_digests

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS = 600  # for the commands of a block
USUAL_ADDRESS = "127.0.0.1:8001"  # pages show it in place of the port of their server


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        language: ``sh``, ``text``, ``python``, ...
        title: The name of the file that it is; empty for another block.
        code: Its lines.
        line: The number of its first line in the page.
    """

    language: str
    title: str
    code: str
    line: int


def read_blocks(page: str) -> list[Block]:
    """List the code blocks of a page in their order."""
    return [
        Block(found[1], found[2] or "", found[3], page.count("\n", 0, found.start()) + 2)
        for found in BLOCK.finditer(page)
    ]


def run_page(page: str, folder: Path) -> list[str]:
    """Run the blocks of a page, and list where it shows another output.

    Args:
        page: The Markdown.
        folder: The empty folder to run them in.

    Raises:
        AssertionError: A command failed that the page does not expect to fail.
    """
    blocks = read_blocks(page)
    differences: list[str] = []
    shown_as: dict[str, str] = {}  # the shown digest of each real one
    for place, real in _run_blocks(blocks, folder):
        found = list_differences(blocks[place].code, real)
        for shown, digest in pair_digests(blocks[place].code, real):
            if shown_as.setdefault(digest, shown) != shown:
                found.append(f"one file has the digests {shown_as[digest]} and {shown} on the page")
        differences += [f"line {blocks[place].line}: {one}" for one in found]
    return differences


def renew_page(page: str, folder: Path) -> str:
    """Run the blocks of a page, and return the page with the real outputs; an empty output becomes the whole one.

    Args:
        page: The Markdown.
        folder: The empty folder to run them in.
    """
    lines, blocks = page.split("\n"), read_blocks(page)
    for place, real in reversed(list(_run_blocks(blocks, folder))):
        shown, first = blocks[place].code.splitlines(), blocks[place].line - 1
        lines[first : first + len(shown)] = align(shown, real.splitlines()) if shown else real.splitlines()
    return "\n".join(lines)


def _run_blocks(blocks: list[Block], folder: Path) -> Iterator[tuple[int, str]]:
    """Write and run the blocks; yield the place of each shown output, and the real one."""
    shutil.copy(ROOT / "docs/tutorials/make_photos.py", folder)
    real = ""
    with _open_shell(folder) as shell:
        for place, block in enumerate(blocks):
            if block.language == "text" and not block.title:
                yield place, real
            elif block.title:
                (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.title).write_text(block.code)
            else:
                assert block.language == "sh", f"line {block.line}: a block {block.language} needs a title"
                real = re.sub(r"\b127\.0\.0\.1:\d+", USUAL_ADDRESS, _run_block(shell, block))


@contextmanager
def _open_shell(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell with evalmode on its path, and with ports of its own; at the end all its processes are killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",  # with few photos, the order of sums changes a training visibly
        "EVALMODE_SERVE_PORT": str(port),
        "EVALMODE_SERVE_METRICS_PORT": "0",
        "EVALMODE_PREDICT_ADDRESS": f"127.0.0.1:{port}",
        "EVALMODE_PREDICT_TIMEOUT": "120",
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    shell = subprocess.Popen(["bash"], cwd=folder, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        yield shell
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()


def _run_block(shell: subprocess.Popen[str], block: Block) -> str:
    """Run the commands of a block in the shell, and return what they printed."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    with tempfile.NamedTemporaryFile("w+", suffix=".sh") as script, tempfile.NamedTemporaryFile("w+") as output:
        script.write(block.code)
        script.flush()
        run = f". {script.name} >{output.name} 2>&1 </dev/null"
        shell.stdin.write(f"failed=0; trap failed=1 ERR; {run}; echo $failed\n")
        shell.stdin.flush()
        ready, _, _ = select.select([shell.stdout], [], [], SECONDS)
        printed = output.read()
        assert ready, f"line {block.line}: not ended after {SECONDS} s:\n{block.code}{printed}"
        assert shell.stdout.readline() == "0\n", f"line {block.line}: a command failed:\n{block.code}{printed}"
    return printed


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as empty:
            Path(name).write_text(renew_page(Path(name).read_text("utf-8"), Path(empty)))
