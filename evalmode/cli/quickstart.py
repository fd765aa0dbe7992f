"""``evalmode quickstart``: runs the other commands one after the other, on digits or on photos of the user."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import click

from evalmode.cli.paths import ExistingPath
from evalmode.display import open_console
from evalmode.errors import UsageError
from evalmode.images.formats import SERVED_FORMATS, list_suffixes
from training.errors import CommandKilled
from training.torch_runtime import import_torch

DIGIT_EPOCHS, PHOTO_MINUTES = 20, 10


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("evalmode-quickstart"),
    help="folder to write, new or empty",
)
@click.option(
    "--photos",
    metavar="FOLDER",
    type=ExistingPath(file_okay=False, path_type=Path),
    help="your own photos, in folders named by label; without it, digits of scikit-learn",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help=f"time for training on --photos; {PHOTO_MINUTES} without it",
)
@click.option(
    "--epochs", type=click.IntRange(1), help=f"passes over the digits; {DIGIT_EPOCHS} without it. Not for --photos"
)
@click.option("--seed", type=click.IntRange(0), default=3, help="seed of every random draw in training")
def quickstart(out: Path, photos: Path | None, minutes: float | None, epochs: int | None, seed: int) -> None:
    """Train on digits or on your photos, export, serve and predict, with the commands that a user would type."""
    if photos is None and minutes is not None:
        raise UsageError(f"--minutes {minutes:g} is for --photos: give --epochs for the digits, or leave it out")
    if photos is not None and epochs is not None:
        raise UsageError(f"--epochs {epochs} is for the digits: give --minutes for --photos, or leave it out")
    import_torch()
    from training.run import claim_folder

    claim_folder(out)
    started = time.perf_counter()
    run, models, held_out, answers = out / "run", out / "models", out / "held-out", out / "answers.csv"
    if photos is None:
        _command("train", "digits", "--out", run, "--epochs", epochs or DIGIT_EPOCHS, "--seed", seed)
    else:
        _command("train", photos, "--out", run, "--minutes", f"{minutes or PHOTO_MINUTES:g}", "--seed", seed)
    _command("export", run, "--repository", models, "--name", "photos" if photos else "digits")
    images = _copy_test_images(run, held_out)
    _print(f"\ncopied the {len(images)} held-out test images to {held_out}/<label>/")
    with _serving(models) as address:
        _command("predict", *images[:: max(1, len(images) // 5)][:5], "--address", address, "--top-k", 3)
        _command("predict", held_out, "--address", address, "--csv", into=answers)
    _print(f"\ndone in {time.perf_counter() - started:.0f} s; everything is in {out}; {run}/report.html shows the run")


def _command(*arguments: object, into: Path | None = None) -> None:
    """Show a command of evalmode and run it; its standard output may go into a file."""
    _show_command(arguments, f" > {into}" if into else "")
    with into.open("w") if into else nullcontext() as output, _ignore_interrupts() as interrupts:
        code = _start(arguments, output).wait()
    if interrupts and not code:  # the command had finished its work
        raise KeyboardInterrupt
    _check_code(arguments, code)


def _start(arguments: tuple[object, ...], output: IO[str] | int | None) -> subprocess.Popen[str]:
    """Start a command of evalmode, which blocks interrupts until it can report them.

    Args:
        arguments: The arguments of the command.
        output: Its standard output, as of ``subprocess.Popen``.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        command = [sys.executable, "-m", "evalmode", *map(str, arguments)]
        return subprocess.Popen(command, stdout=output, text=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _check_code(arguments: tuple[object, ...], code: int) -> None:
    """Exit as a command did that has failed.

    Args:
        arguments: The arguments of the command.
        code: Its exit code; the negative number of the signal that ended it.

    Raises:
        CommandKilled: A signal ended the command.
        KeyboardInterrupt: The signal was SIGINT.
    """
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code < 0:
        raise CommandKilled(
            f"evalmode {arguments[0]} was ended by {signal.Signals(-code).name}: was there too little memory?"
        )
    if code:
        sys.exit(code)


@contextmanager
def _ignore_interrupts() -> Iterator[list[int]]:
    """Ignore Ctrl-C, which reaches the running command, too; its exit code ends the quickstart.

    Yields:
        A list that grows with each interrupt.
    """
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _serving(models: Path) -> Iterator[str]:
    """Run a server while the block runs, and yield its address."""
    arguments = ("serve", "--repository", models, "--port", 0, "--no-metrics", "--lame-duck", 0)
    _show_command(arguments)
    with _ignore_interrupts() as interrupts:
        server = _start(arguments, subprocess.PIPE)
    assert server.stdout is not None
    try:
        if interrupts:
            raise KeyboardInterrupt
        ready = server.stdout.readline()
        if not ready:
            _check_code(arguments, server.wait())
            sys.exit(1)
        _print(ready.strip())
        yield "127.0.0.1:" + ready.split()[-1]
    finally:
        server.terminate()
        code = server.wait()
    _print(f"SIGTERM: the server drained and exited with {code}")
    _check_code(arguments, code)


def _show_command(arguments: tuple[object, ...], redirection: str = "") -> None:
    _print(f"\n$ evalmode {' '.join(map(str, arguments))}{redirection}", style="bold")


def _print(lines: str, style: str | None = None) -> None:
    open_console().print(lines, style=style)


def _copy_test_images(run: Path, folder: Path) -> list[Path]:
    """Copy the test images of a run into folders named by their labels.

    Pixels without a file, or with one of a format that a server does not decode, become PNG files.
    """
    from PIL import Image

    from training.callbacks import SILENT
    from training.loading import reload_data
    from training.run import Run

    dataset = reload_data(Run.open(run), None, None, SILENT)
    copies = []
    for index, target in enumerate(dataset.test.targets):
        source = dataset.test.paths[index] if dataset.test.paths else Path()
        is_served = source.suffix.lower() in list_suffixes(SERVED_FORMATS)
        copies.append(folder / dataset.labels[target] / f"{index:04d}{source.suffix if is_served else '.png'}")
        copies[-1].parent.mkdir(parents=True, exist_ok=True)
        if is_served:
            shutil.copyfile(source, copies[-1])
        else:
            Image.fromarray(dataset.test.images[index].squeeze()).save(copies[-1])
    return copies
