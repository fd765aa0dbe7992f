"""``evalmode predict``: classify images, folders and pipes, by a server or by an artifact in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from evalmode.cli.answers import Answer, print_accuracy, print_csv, print_json, print_models, print_table
from evalmode.cli.heatmaps import place_heatmaps
from evalmode.cli.image_limits import image_limit_options
from evalmode.cli.paths import ExistingPath
from evalmode.cli.sources import Source, find_sources, read_image
from evalmode.client import DEFAULT_ADDRESS, CallFailed, Client
from evalmode.errors import EvalmodeError, ImageError, UsageError
from evalmode.images.formats import FORMATS, SERVED_FORMATS, list_suffixes
from evalmode.limits import OWN_IMAGES, Limits
from evalmode.prediction import DEFAULT_TOP_K, Prediction

_FILE = ExistingPath(dir_okay=False, path_type=Path)
OPTIONS_OF = {  # what to do about the reasons of a server, which does not know the options of its clients
    "TOKEN_INVALID": "--token-file FILE",
    "MODEL_UNSPECIFIED": "--model NAME",
    "MODEL_NOT_FOUND": "--model NAME, and --version N for another than the newest",
}
Predict = Callable[[bytes, Path], Prediction]  # the image, and the file that it was read from


@dataclass(frozen=True)
class PredictOptions:
    """The options of ``evalmode predict``, named as on the command line."""

    address: str
    file: Path | None
    model: str
    version: str
    top_k: int
    timeout: float
    token_file: Path | None
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    max_image_bytes: int | None
    max_image_pixels: int | None
    as_json: bool
    as_csv: bool
    heatmap: Path | None

    def check(self) -> None:
        """Check that the options fit together.

        Raises:
            UsageError: They do not.
        """
        if self.as_json and self.as_csv:
            raise UsageError("--json and --csv exclude each other: give one")
        if self.max_image_pixels and not self.file:
            raise UsageError("--max-image-pixels is for --file: a server has its own limit")
        if self.heatmap and not self.file:
            raise UsageError("--heatmap needs --file: it runs the model in this process, without a server")

    @property
    def limits(self) -> Limits:
        """The largest image that is classified with ``--file``."""
        default = Limits()
        return Limits(
            self.max_image_bytes or default.max_image_bytes, self.max_image_pixels or default.max_image_pixels
        )


@click.command()
@click.argument("paths", metavar="IMAGE|DIR|-...", type=ExistingPath(allow_dash=True), nargs=-1, required=True)
@click.option("--address", default=DEFAULT_ADDRESS, help="HOST:PORT of a server")
@click.option("--file", type=_FILE, help="a model.onnx to run in this process, without a server")
@click.option("--model", default="", show_default=False, help="name of the model, if the server has several")
@click.option("--version", default="", show_default=False, help="version of the model; the newest by default")
@click.option("--top-k", type=click.IntRange(1), default=DEFAULT_TOP_K, help="number of labels for each image")
@click.option("--timeout", type=click.FloatRange(0.001), default=10.0, help="deadline of a call, seconds")
@click.option("--token-file", type=_FILE, help="file that holds the token, if the server requires one")
@click.option("--tls-ca", type=_FILE, help="PEM: certificate authorities that may sign the server's certificate")
@click.option("--tls-cert", type=_FILE, help="PEM: the client's certificate, if the server requires one")
@click.option("--tls-key", type=_FILE, help="PEM: private key of --tls-cert")
@image_limit_options(None)
@click.option("--json", "as_json", is_flag=True, help="print a JSON object for each image, one a line")
@click.option("--csv", "as_csv", is_flag=True, help="print a row for each label")
@click.option(
    "--heatmap",
    metavar="PNG|DIR",
    type=click.Path(path_type=Path),
    help="needs --file: draw where the network sees the predicted label; a PNG file, for several images a folder",
)
def predict(paths: tuple[str, ...], **options: Any) -> None:
    """Classify images, or every image below a folder, by a server or by a file; - is standard input."""
    chosen = PredictOptions(**options)
    chosen.check()
    images = list(find_sources(paths, list_suffixes(FORMATS if chosen.file else SERVED_FORMATS)))
    places = place_heatmaps(chosen.heatmap, [(source.path, source.root) for source in images]) if chosen.heatmap else {}
    with _open_predictor(chosen, places) as (predict_one, labels):
        limits = chosen.limits if chosen.file else OWN_IMAGES
        answers, failures, stopped = _predict_all(images, predict_one, chosen.max_image_bytes or limits.max_image_bytes)
    if stopped and not (answers or failures):
        raise stopped
    if chosen.as_json:
        print_json(answers)
    elif chosen.as_csv:
        print_csv(answers)
    elif answers:
        print_table(answers)
        print_models(answers, chosen.file, chosen.address)
        if chosen.heatmap:
            click.echo(f"heatmap  {chosen.heatmap}: bright where the resized and cropped image speaks for the label")
    print_accuracy(answers, labels)
    for failure in failures:
        click.echo(f"evalmode: {failure}", err=True)
    if stopped:
        raise EvalmodeError(f"{stopped}; {len(images) - len(answers)} of {len(images)} images were not classified")
    if failures:
        raise UsageError(f"{len(failures)} of {len(images)} images were not classified")


def _read_token(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} does not hold a token: {error}") from error


@contextmanager
def _open_predictor(
    options: PredictOptions, heatmaps: Mapping[Path, Path]
) -> Iterator[tuple[Predict, tuple[str, ...]]]:
    """A function that classifies one image, and writes its heatmap, and the labels of the model."""
    top_k = options.top_k
    if options.file:
        from evalmode.runtime.loading import load_model  # the bare install has no onnxruntime

        model, limits = load_model(options.file), options.limits

        def predict_here(image: bytes, path: Path) -> Prediction:
            if path not in heatmaps:
                return model.predict(image, top_k, limits, FORMATS)
            explanation = model.explain(image, top_k, limits, FORMATS)
            try:
                heatmaps[path].parent.mkdir(parents=True, exist_ok=True)
                explanation.save(heatmaps[path])
            except OSError as error:
                raise UsageError(f"--heatmap {heatmaps[path]}: {error.strerror}") from error
            return explanation.prediction

        yield predict_here, model.manifest.labels
        return
    token = _read_token(options.token_file) if options.token_file else ""
    tls = {"tls_ca": options.tls_ca, "tls_cert": options.tls_cert, "tls_key": options.tls_key}
    name, version = options.model, options.version
    with Client(options.address, options.timeout, token=token, **tls) as client:
        labels = _list_labels(client, name, version)

        def predict_there(image: bytes, path: Path) -> Prediction:
            until = time.monotonic() + options.timeout
            while True:
                try:
                    return client.predict(image, model=name, version=version, top_k=top_k)
                except CallFailed as error:  # a server that is busy says when to ask again
                    if not error.retry_s or time.monotonic() + error.retry_s > until:
                        raise
                    time.sleep(error.retry_s)

        yield predict_there, labels


def _list_labels(client: Client, name: str, version: str) -> tuple[str, ...]:
    """The labels of the model that will answer.

    Raises:
        CallFailed: There is no such model, or the server refuses the call.
    """
    try:
        return tuple(client.get_model(name, version).labels)
    except CallFailed as error:
        if error.reason not in OPTIONS_OF:
            raise
        raise EvalmodeError(f"{error} ({OPTIONS_OF[error.reason]})") from error


def _predict_all(
    images: list[Source], predict_one: Predict, max_bytes: int
) -> tuple[list[Answer], list[str], EvalmodeError | None]:
    """Classify every image, and continue after failures that concern one image alone.

    Returns:
        The predictions, a line for each image that could not be classified, and the error that all others would have.
    """
    answers: list[Answer] = []
    failures: list[str] = []
    console = Console(stderr=True)
    for source in track(images, "predicting", console=console, transient=True, disable=not console.is_terminal):
        try:
            answers.append((source, predict_one(read_image(source.path, max_bytes), source.path)))
        except (ImageError, CallFailed, OSError) as error:
            if isinstance(error, CallFailed) and not _concerns_image(error):
                return answers, failures, EvalmodeError(f"{source.path}: {error}")
            why = error.strerror if isinstance(error, OSError) else error
            failures.append(f"{source.path}: {why}")
    return answers, failures, None


def _concerns_image(error: CallFailed) -> bool:
    """Whether a server refused an image for what it is, such as its size, and may answer the next one."""
    return error.code == "INVALID_ARGUMENT" or (error.code == "RESOURCE_EXHAUSTED" and not error.retry)
