"""``evalmode predict``: images, folders and pipes to labels, through a server or with an artifact in this process."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unicodedata import normalize

import click
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from evalmode.cli.image_limits import image_limit_options
from evalmode.cli.paths import ExistingPath
from evalmode.client import DEFAULT_ADDRESS, CallFailed, Client
from evalmode.errors import EvalmodeError, ImageError, ImageTooLarge, UsageError
from evalmode.images.folders import describe_unread, find_images
from evalmode.images.formats import IMAGE_SUFFIXES
from evalmode.limits import OWN_IMAGES, Limits
from evalmode.prediction import DEFAULT_TOP_K, Prediction

_FILE = ExistingPath(dir_okay=False, path_type=Path)
STDIN = Path("-")
Predict = Callable[[bytes], Prediction]


@dataclass(frozen=True)
class Source:
    """An image to classify.

    Attributes:
        path: where it lies; ``-``: standard input.
        root: the folder that the user gave, or its own.
    """

    path: Path
    root: Path

    def find_label(self, labels: tuple[str, ...]) -> str | None:
        """The outermost folder in the root that is named like a label, as for training; else the root itself."""
        known = {normalize("NFC", label): label for label in labels}
        below = self.path.parent.relative_to(self.root).parts
        names = (normalize("NFC", name) for name in (*below, self.root.name))
        return next((known[name] for name in names if name in known), None)


Answer = tuple[Source, Prediction]


@click.command()
@click.argument("paths", metavar="IMAGE|DIR|-...", type=ExistingPath(allow_dash=True), nargs=-1, required=True)
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
@image_limit_options(None)
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.option("--csv", "as_csv", is_flag=True, help="one row a label")
def predict(
    paths: tuple[str, ...],
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
    max_image_bytes: int | None,
    max_image_pixels: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Classify images, or every image below a folder, by a server or by a file; - is standard input."""
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other: give one")
    if max_image_pixels and not file:
        raise UsageError("--max-image-pixels is for --file: a server has a limit of its own")
    images = list(_find_images(paths))
    if file:
        limits = Limits()
        max_image_bytes = max_image_bytes or limits.max_image_bytes
        limits = Limits(max_image_bytes, max_image_pixels or limits.max_image_pixels)
        open_predictor = _open_file(file, top_k, limits)
    else:
        token = _read_token(token_file) if token_file else ""
        client = Client(address, timeout, token=token, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
        open_predictor = _open_server(client, model, version, top_k)
    with open_predictor as (predict_one, labels):
        answers, failures = _predict_all(images, predict_one, max_image_bytes or OWN_IMAGES.max_image_bytes)
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


def _find_images(paths: Iterable[str]) -> Iterator[Source]:
    for name in paths:
        path = Path(name)
        if name == "-":
            yield Source(STDIN, STDIN.parent)
        elif not path.is_dir():  # a pipe may be
            path = path if path != STDIN else path.absolute()
            yield Source(path, path.parent)
        else:
            found = find_images(path)
            unread = describe_unread(found.others)
            if not found.images:
                raise UsageError(f"{path} holds no image: {unread[0] if unread else ', '.join(IMAGE_SUFFIXES)}")
            for sentence in unread:
                click.echo(f"evalmode: {sentence}", err=True)
            yield from (Source(image, path) for image in found.images)


def _read_image(path: Path, max_bytes: int) -> bytes:
    """A file, or standard input, to its end.

    Raises:
        ImageTooLarge: there is more than so many bytes.
        OSError: it cannot be read.
    """
    # Standard input by its number: Python has no sys.stdin where it was closed at the start.
    with open(0, "rb", closefd=False) if path == STDIN else path.open("rb") as file:
        image = file.read(max_bytes + 1)
    if len(image) > max_bytes:
        raise ImageTooLarge(
            f"image is more than {max_bytes} bytes, the limit: send a smaller one, or raise --max-image-bytes",
            limit_bytes=max_bytes,
        )
    return image


@contextmanager
def _open_file(file: Path, top_k: int, limits: Limits) -> Iterator[tuple[Predict, tuple[str, ...]]]:
    from evalmode.runtime.loading import load_model  # the bare install has no onnxruntime

    model = load_model(file)
    yield lambda image: model.predict(image, top_k, limits), model.manifest.labels


@contextmanager
def _open_server(client: Client, model: str, version: str, top_k: int) -> Iterator[tuple[Predict, tuple[str, ...]]]:
    with client:
        labels = tuple(client.get_model(model, version).labels)
        yield lambda image: client.predict(image, model=model, version=version, top_k=top_k), labels


def _predict_all(images: list[Source], predict_one: Predict, max_bytes: int) -> tuple[list[Answer], list[str]]:
    """Classify every image; one that fails is told of at the end and costs no other."""
    answers: list[Answer] = []
    failures: list[str] = []
    console = Console(stderr=True)
    for source in track(images, "predicting", console=console, transient=True, disable=not console.is_terminal):
        try:
            answers.append((source, predict_one(_read_image(source.path, max_bytes))))
        except (ImageError, CallFailed, OSError) as error:
            if isinstance(error, CallFailed) and error.code != "INVALID_ARGUMENT":
                raise EvalmodeError(f"{source.path}: {error}") from error
            why = error.strerror if isinstance(error, OSError) else error
            failures.append(f"{source.path}: {why}")
    return answers, failures


def _print_json(answers: list[Answer]) -> None:
    for source, prediction in answers:
        click.echo(json.dumps({"image": str(source.path), **asdict(prediction)}))


def _print_csv(answers: list[Answer]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(["image", "rank", "label", "probability"])
    for source, prediction in answers:
        for rank, score in enumerate(prediction.scores, 1):
            writer.writerow([source.path, rank, score.label, score.probability])


def _print_table(answers: list[Answer]) -> None:
    table = Table(Column("image", overflow="fold"), "label", "probability", "then")
    for source, prediction in answers:
        then = ", ".join(f"{score.label} {score.probability:.3f}" for score in prediction.scores[1:])
        table.add_row(str(source.path), prediction.label, f"{prediction.probability:.3f}", then)
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)  # paths and labels as they are


def _print_accuracy(answers: list[Answer], labels: tuple[str, ...]) -> None:
    """Where every image lies in a folder named like a label, count how many were given it."""
    told = [source.find_label(labels) for source, _ in answers]
    if answers and None not in told:
        right = sum(label == prediction.label for label, (_, prediction) in zip(told, answers, strict=True))
        share = right / len(answers)
        click.echo(f"accuracy {share:.4f}: {right} of {len(answers)} images are what their folder says", err=True)
