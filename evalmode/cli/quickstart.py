"""``evalmode quickstart``: runs the other commands one after the other, on data that need no download."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import click

from evalmode.display import open_console
from training.errors import CommandKilled
from training.torch_runtime import import_torch


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("evalmode-quickstart"),
    help="folder to write, new or empty",
)
@click.option("--epochs", type=click.IntRange(1), default=20, help="passes over the training images")
@click.option("--seed", type=click.IntRange(0), default=3, help="seed of every random draw in training")
def quickstart(out: Path, epochs: int, seed: int) -> None:
    """Train on the digits of scikit-learn, export, serve and predict, with the commands that a user would type."""
    import_torch()
    from training.run import claim_folder

    claim_folder(out)
    started = time.perf_counter()
    run, models, held_out, answers = out / "run", out / "models", out / "held-out", out / "answers.csv"
    _command("train", "digits", "--out", run, "--epochs", epochs, "--seed", seed)
    _command("export", run, "--repository", models, "--name", "digits")
    images = _save_test_images(run, held_out)
    _print(f"\nwrote the {len(images)} held-out test images to {held_out}/<label>/*.png")
    with _serving(models) as address:
        _command("predict", *images[:: len(images) // 5][:5], "--address", address, "--top-k", 3)
        _command("predict", held_out, "--address", address, "--csv", into=answers)
    _print(f"\ndone in {time.perf_counter() - started:.0f} s; everything is in {out}")


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


def _save_test_images(run: Path, folder: Path) -> list[Path]:
    """Write the test images of a run as PNG files, in folders named by their labels."""
    from PIL import Image

    from training.datasets import ReadOptions, load_dataset
    from training.run import Run

    config = Run.open(run).config
    dataset = load_dataset(config.data, ReadOptions(config.image_size), config.recipe.seed)
    paths = []
    for index, (pixels, target) in enumerate(zip(dataset.test.images, dataset.test.targets, strict=True)):
        paths.append(folder / dataset.labels[target] / f"{index:04d}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze()).save(paths[-1])
    return paths
