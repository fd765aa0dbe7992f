"""``evalmode quickstart``: every command a user would type, one after the other, on data that is embedded."""

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

from training.commands.console import console


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("evalmode-quickstart"),
    help="folder to work in, new or empty",
)
@click.option("--epochs", type=click.IntRange(1), default=20, help="passes over the training images")
@click.option("--seed", type=click.IntRange(0), default=3, help="as in train")
def quickstart(out: Path, epochs: int, seed: int) -> None:
    """Train on embedded digits, export, serve and predict: every command a user would type, one after the other."""
    from training.run import claim_folder

    claim_folder(out)
    started = time.perf_counter()
    run, models, held_out, answers = out / "run", out / "models", out / "held-out", out / "answers.csv"
    _command("train", "digits", "--out", run, "--epochs", epochs, "--seed", seed)
    _command("export", run, "--repository", models, "--name", "digits")
    images = _save_test_images(run, held_out)
    console.print(f"\nwrote the {len(images)} held-out test images to {held_out}/<label>/*.png")
    with _serving(models) as address:
        _command("predict", *images[:: len(images) // 5][:5], "--address", address, "--top-k", 3)
        _command("predict", held_out, "--address", address, "--csv", into=answers)
    console.print(f"\ndone in {time.perf_counter() - started:.0f} s; everything is in {out}")


def _command(*arguments: object, into: Path | None = None) -> None:
    """Run one of our own commands as a user would, showing it first."""
    _show_command(arguments, f" > {into}" if into else "")
    with into.open("w") if into else nullcontext() as output, _interrupts_left_to_others() as interrupts:
        code = _start(arguments, output).wait()
    if interrupts and not code:  # it was about to end
        raise KeyboardInterrupt
    _check(arguments, code)


def _start(arguments: tuple[object, ...], output: IO[str] | int | None) -> subprocess.Popen[str]:
    """Start one of our own commands, which holds an interrupt back until it can say so."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        command = [sys.executable, "-m", "serving", *map(str, arguments)]
        return subprocess.Popen(command, stdout=output, text=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _check(arguments: tuple[object, ...], code: int) -> None:
    """End as a command has ended, unless it has done its work.

    Raises:
        CommandKilled: A signal ended it.
    """
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code < 0:
        from training.errors import CommandKilled

        raise CommandKilled(f"evalmode {arguments[0]} was ended by {signal.Signals(-code).name}: was memory short?")
    if code:
        sys.exit(code)


@contextmanager
def _interrupts_left_to_others() -> Iterator[list[int]]:
    """Ctrl-C reaches every process of a terminal: the command that runs says so, and ends with its exit code.

    Yields those that come.
    """
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _serving(models: Path) -> Iterator[str]:
    """A server for as long as the block lasts; yields its address."""
    arguments = ("serve", "--repository", models, "--port", 0, "--no-metrics", "--lame-duck", 0)
    _show_command(arguments)
    with _interrupts_left_to_others() as interrupts:
        server = _start(arguments, subprocess.PIPE)
    assert server.stdout is not None
    try:
        if interrupts:
            raise KeyboardInterrupt
        ready = server.stdout.readline()
        if not ready:
            _check(arguments, server.wait())
            sys.exit(1)
        console.print(ready.strip())
        yield "127.0.0.1:" + ready.split()[-1]
    finally:
        server.terminate()
        code = server.wait()
    console.print(f"SIGTERM: the server drained and exited with {code}")
    _check(arguments, code)


def _show_command(arguments: tuple[object, ...], redirection: str = "") -> None:
    console.print(f"\n$ evalmode {' '.join(map(str, arguments))}{redirection}", style="bold")


def _save_test_images(run: Path, folder: Path) -> list[Path]:
    """Write a run's test images as PNG files, in folders named by their labels."""
    from PIL import Image

    from training.datasets import load_dataset
    from training.run import Run

    config = Run.open(run).config
    dataset = load_dataset(config.data, config.image_size, config.recipe.seed)
    paths = []
    for index, (pixels, target) in enumerate(zip(dataset.test.images, dataset.test.targets, strict=True)):
        paths.append(folder / dataset.labels[target] / f"{index:04d}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze()).save(paths[-1])
    return paths
