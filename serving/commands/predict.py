"""``evalmode predict``: images and folders to labels, through a server or with an artifact in this process."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from serving.client import DEFAULT_ADDRESS, CallFailed, Client
from serving.errors import EvalmodeError, ImageError, UsageError
from serving.limits import IMAGE_SUFFIXES
from serving.prediction import DEFAULT_TOP_K, Prediction

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
Predict = Callable[[Path], Prediction]
Answer = tuple[Path, Prediction]


@click.command()
@click.argument("paths", metavar="IMAGE|DIR...", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option("--address", default=DEFAULT_ADDRESS, help="HOST:PORT of a server")
@click.option("--file", type=_FILE, help="a model.onnx: no server")
@click.option("--model", default="", help="the model's name, where the server holds several")
@click.option("--version", default="", help="the model's version; the newest by default")
@click.option("--top-k", type=click.IntRange(1), default=DEFAULT_TOP_K, help="labels an image")
@click.option("--timeout", type=click.FloatRange(0.001), default=10.0, help="deadline of one call, seconds")
@click.option("--token-file", type=_FILE, help="a file that holds the token which the server wants")
@click.option("--tls-ca", type=_FILE, help="PEM: the server's certificate comes from one of these authorities")
@click.option("--tls-cert", type=_FILE, help="PEM: our certificate, where the server wants one")
@click.option("--tls-key", type=_FILE, help="PEM: the private key of --tls-cert")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.option("--csv", "as_csv", is_flag=True, help="one row a label")
def predict(
    paths: tuple[Path, ...],
    address: str,
    file: Path | None,
    model: str,
    version: str,
    top_k: int,
    timeout: float,
    token_file: Path | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Classify images, or every image below a folder, by a server or by a file."""
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other: give one")
    images = list(_find_images(paths))
    if file:
        open_predictor = _open_file(file, top_k)
    else:
        token = _read_token(token_file) if token_file else ""
        client = Client(address, timeout, token=token, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
        open_predictor = _open_server(client, model, version, top_k)
    with open_predictor as (predict_one, labels):
        answers, failures = _predict_all(images, predict_one)
    if as_json:
        _print_json(answers)
    elif as_csv:
        _print_csv(answers)
    else:
        _print_table(answers)
    _print_accuracy(answers, labels)
    for failure in failures:
        click.echo(f"evalmode: {failure}", err=True)
    if failures:
        raise UsageError(f"{len(failures)} of {len(images)} images were not classified")


def _read_token(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} holds no token: {error}") from error


def _find_images(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise UsageError(f"{path} holds no image: none of {', '.join(IMAGE_SUFFIXES)}")
        yield from found


@contextmanager
def _open_file(file: Path, top_k: int) -> Iterator[tuple[Predict, tuple[str, ...]]]:
    from serving.model import load_model  # the bare install has no onnxruntime

    model = load_model(file)
    yield lambda path: model.predict(path, top_k), model.manifest.labels


@contextmanager
def _open_server(client: Client, model: str, version: str, top_k: int) -> Iterator[tuple[Predict, tuple[str, ...]]]:
    with client:
        labels = tuple(client.get_model(model, version).labels)
        yield lambda path: client.predict(path, model=model, version=version, top_k=top_k), labels


def _predict_all(images: list[Path], predict_one: Predict) -> tuple[list[Answer], list[str]]:
    """Classify every image; one that fails is told of at the end and costs no other."""
    answers: list[Answer] = []
    failures: list[str] = []
    console = Console(stderr=True)
    for path in track(images, "predicting", console=console, transient=True, disable=not console.is_terminal):
        try:
            answers.append((path, predict_one(path)))
        except (ImageError, CallFailed, OSError) as error:
            if isinstance(error, CallFailed) and error.code != "INVALID_ARGUMENT":
                raise EvalmodeError(f"{path}: {error}") from error
            failures.append(f"{path}: {error}")
    return answers, failures


def _print_json(answers: list[Answer]) -> None:
    for path, prediction in answers:
        click.echo(json.dumps({"image": str(path), **asdict(prediction)}))


def _print_csv(answers: list[Answer]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(["image", "rank", "label", "probability"])
    for path, prediction in answers:
        for rank, score in enumerate(prediction.scores, 1):
            writer.writerow([path, rank, score.label, score.probability])


def _print_table(answers: list[Answer]) -> None:
    table = Table(Column("image", overflow="fold"), "label", "probability", "then")
    for path, prediction in answers:
        then = ", ".join(f"{score.label} {score.probability:.3f}" for score in prediction.scores[1:])
        table.add_row(str(path), prediction.label, f"{prediction.probability:.3f}", then)
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)  # paths and labels as they are


def _print_accuracy(answers: list[Answer], labels: tuple[str, ...]) -> None:
    """Where every image lies in a folder named like a label, count how many were given it."""
    if answers and all(path.parent.name in labels for path, _ in answers):
        right = sum(path.parent.name == prediction.label for path, prediction in answers)
        share = right / len(answers)
        click.echo(f"accuracy {share:.4f}: {right} of {len(answers)} images are what their folder says", err=True)
