"""``evalmode train``, ``export`` and ``quickstart``. torch is imported when a command runs, not before."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import torch

    from training.datasets import Dataset
    from training.run import Run
    from training.train import Epoch

console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)  # paths and labels as they are


def _parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value)
    if not match:
        raise click.BadParameter(f"{value!r} is not HxW, such as 32x32")
    return int(match[1]), int(match[2])


@click.command()
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="run folder to write, new or empty")
@click.option("--network", default="reference", help="the network to train")
@click.option(
    "--image-size",
    metavar="HxW",
    callback=_parse_size,
    help="bring every image to this size; else all must have one size",
)
@click.option("--epochs", type=click.IntRange(1), default=10, help="passes over the training images")
@click.option("--batch-size", type=click.IntRange(2), default=32, help="images a step")
@click.option("--learning-rate", type=click.FloatRange(0, 1e30, min_open=True), default=5e-4, help="Adam's")
@click.option("--weight-decay", type=click.FloatRange(0), default=0.0, help="Adam's, decoupled")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.5, help="share of units dropped")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="decides every random draw")
@click.option("--device", type=click.Choice(["cpu", "cuda", "auto"]), default="auto", help="where to train")
def train(
    data: str,
    out: Path,
    image_size: tuple[int, int] | None,
    seed: int,
    device: str,
    **recipe_options: int | float | str,
) -> None:
    """Train a classifier on DATA: a folder of <class>/<image> files, or 'digits'."""
    import torch

    from training.run import Recipe, Run, RunConfig, claim_folder
    from training.train import choose_device

    recipe = Recipe(seed=seed, **recipe_options)  # type: ignore[arg-type]
    place = choose_device(device)
    claim_folder(out)
    dataset = _load_dataset(data, image_size, seed)
    _print_dataset(dataset)
    config = RunConfig.of(dataset, image_size, recipe)
    torch.manual_seed(seed)  # initial weights
    network = config.build_network().to(place)
    trained = sum(weights.numel() for weights in network.parameters())
    console.print(f"network   {recipe.network}, {trained:,} weights, on {place.type}")
    run = Run.create(out, config)
    try:
        _train(run, network, dataset)
    except KeyboardInterrupt:
        console.print(f"\nstopped; the best weights so far are in {out}: evalmode export {out} ...")
        sys.exit(130)


def _train(run: Run, network: torch.nn.Module, dataset: Dataset) -> None:
    from training.train import evaluate
    from training.train import train as train_network

    console.print("epoch      loss  train acc  val acc  seconds", style="bold")
    with _progress("epoch") as bar:
        task = bar.add_task("", total=None)

        def show_epoch(epoch: Epoch) -> None:
            figures = f"{epoch.loss:9.4f}  {epoch.train_accuracy:9.4f}  {epoch.val_accuracy:7.4f}  {epoch.seconds:7.1f}"
            bar.console.print(f"{epoch.epoch:5d} {figures}")

        def show_step(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, total=steps, description=f"loss {loss:.4f}")

        best = train_network(run, network, dataset.train, dataset.val, show_step, show_epoch)
    run.load_weights(network)
    test_accuracy, _ = evaluate(network, dataset.test)
    run.append_metrics({"best_epoch": best.epoch, "test_accuracy": test_accuracy})
    console.print(f"best      epoch {best.epoch}, val {best.val_accuracy:.4f}")
    console.print(f"test      {test_accuracy:.4f} ({len(dataset.test)} images, read once)")
    console.print(f"run       {run.folder}: evalmode export {run.folder} --repository models --name NAME")


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="model repository to publish into")
@click.option("--name", required=True, help="the model's name there")
@click.option("--data", help="where the run's data lies now, if it moved")
def export(run: Path, repository: Path, name: str, data: str | None) -> None:
    """Export RUN in eval mode and publish it as repository/NAME/<next version>/model.onnx.

    Refused unless ONNX Runtime agrees with torch on the whole test set.
    """
    from serving.repository import check_name, publish
    from training.errors import RunError
    from training.export import export_run
    from training.run import Run

    check_name(name)
    opened = Run.open(run)
    dataset = _load_dataset(data or opened.config.data, opened.config.image_size, opened.config.recipe.seed)
    if dataset.digest() != opened.config.data_digest:
        raise RunError(
            f"{dataset.source} is not what {run} was trained on: its digest differs; give --data or train again"
        )
    artifact, agreement = export_run(opened, dataset)
    path = publish(repository, name, artifact)
    near_ties = f"labels equal but for {agreement.changed} of {agreement.near_ties} near ties"
    console.print(
        f"agreement onnxruntime and torch on {agreement.images} test images: logits within "
        f"{agreement.max_logit_difference:.1e}, {near_ties}\n"
        f"accuracy  {agreement.accuracy:.4f}\n"
        f"published {path} ({len(artifact):,} bytes)"
    )


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("evalmode-quickstart"),
    help="folder to work in, new or empty",
)
@click.option("--epochs", type=click.IntRange(1), default=40, help="passes over the training images")
@click.option("--seed", type=click.IntRange(0), default=1, help="as in train")
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
    with into.open("w") if into else nullcontext() as output:
        code = subprocess.run(_argv(arguments), stdout=output).returncode
    if code:
        sys.exit(code)


@contextmanager
def _serving(models: Path) -> Iterator[str]:
    """A server for as long as the block lasts; yields its address."""
    arguments = ("serve", "--repository", models, "--port", 0, "--lame-duck", 0)
    _show_command(arguments)
    server = subprocess.Popen(_argv(arguments), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        ready = server.stdout.readline()
        if not ready:
            sys.exit(server.wait())
        console.print(ready.strip())
        yield "127.0.0.1:" + ready.split()[-1]
    finally:
        server.terminate()
        code = server.wait()
    console.print(f"SIGTERM: the server drained and exited with {code}")
    if code:
        sys.exit(code)


def _show_command(arguments: tuple[object, ...], redirection: str = "") -> None:
    console.print(f"\n$ evalmode {' '.join(map(str, arguments))}{redirection}", style="bold")


def _argv(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "serving", *map(str, arguments)]


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


def _load_dataset(data: str, image_size: tuple[int, int] | None, seed: int) -> Dataset:
    from training.datasets import load_dataset

    with _progress("decoding") as bar:
        task = bar.add_task("", total=None)
        return load_dataset(data, image_size, seed, lambda done, total: bar.update(task, completed=done, total=total))


def _print_dataset(dataset: Dataset) -> None:
    shape = dataset.contract
    counts = ", ".join(f"{len(getattr(dataset, name)):,} {name}" for name in ("train", "val", "test"))
    console.print(f"data      {dataset.source}: {counts}; {len(dataset.labels)} labels")
    console.print(
        f"pixels    {shape.height}x{shape.width}, {'RGB' if shape.channels == 3 else 'grey'}, scaled to [-1, 1]"
    )


def _progress(what: str) -> Progress:
    """A progress bar that is shown on a terminal and nowhere else."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
