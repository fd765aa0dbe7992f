"""The commands that follow a training, with the paths of the run."""

from __future__ import annotations

import re
from pathlib import Path

from evalmode.certification.design.steps import REPOSITORY, Command, propose_model, quote_path
from training.datasets import Dataset
from training.report.findings import Predictions
from training.run import Run

SUFFIXES = re.compile(r"(\.(tar|gz|tgz|npz|zip))+$")


def name_data(data: str) -> str:
    """Name a data set by the last part of its path, or by its own name.

    Args:
        data: Path or name of the data set.
    """
    return Path(data).name or data


def list_commands(run: Run, dataset: Dataset, predictions: Predictions) -> list[Command]:
    """List the commands that export, check and serve the network of a run, and classify an image.

    Args:
        run: The run.
        dataset: Its data set; a test image of it is classified, if it has files.
        predictions: The predictions for the test images: an image that is classified correctly is chosen.
    """
    name, published = propose_model(SUFFIXES.sub("", name_data(run.config.data)))
    file = quote_path(published)
    image = quote_path(_choose_image(dataset, predictions))
    return [
        Command(
            "export in eval mode to one file; each export is a new version",
            f"evalmode export {quote_path(run.folder)} --repository {REPOSITORY} --name {name}",
        ),
        Command("check the file: its proof is replayed", f"evalmode check {file}"),
        Command("classify an image with the file, without a server", f"evalmode predict {image} --file {file}"),
        Command("serve it over gRPC until Ctrl-C", f"evalmode serve --repository {REPOSITORY}"),
        Command("classify an image by the server, in another terminal", f"evalmode predict {image}"),
    ]


def _choose_image(dataset: Dataset, predictions: Predictions) -> Path:
    """Choose a test image that is classified correctly, or a name for one if the data set has no files."""
    paths = dataset.test.paths
    return Path(paths[int(predictions.correct.argmax())]) if paths else Path("IMAGE.png")
