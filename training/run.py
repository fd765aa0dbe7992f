"""The run folder: what a training left behind, and what the export needs of it.

``run.json`` says how it was trained, ``best.safetensors`` holds the weights, ``metrics.jsonl`` a line an epoch.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from serving.pixels import PixelContract
from training.datasets import Dataset
from training.errors import RunError
from training.network import build_network

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the lecture's.

    Attributes:
        network: a name in ``training.network.NETWORKS``.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: Adam's.
        weight_decay: Adam's, decoupled; 0 is none.
        dropout: share of units dropped in training.
        seed: decides initial weights, order of images, dropout and carved splits.
    """

    network: str = "reference"
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    dropout: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class RunConfig:
    """What a run was trained on and how: enough to build the network and load the data again."""

    data: str
    image_size: tuple[int, int] | None
    data_digest: str
    labels: tuple[str, ...]
    shape: tuple[int, int, int]  # height, width, channels
    recipe: Recipe

    @classmethod
    def of(cls, dataset: Dataset, image_size: tuple[int, int] | None, recipe: Recipe) -> RunConfig:
        """Record a data set and a recipe."""
        source = str(Path(dataset.source).resolve()) if Path(dataset.source).is_dir() else dataset.source
        return cls(source, image_size, dataset.digest(), dataset.labels, dataset.contract.shape, recipe)

    def build_network(self) -> nn.Module:
        """The network of this run, freshly initialised."""
        height, width, channels = self.shape
        return build_network(self.recipe.network, channels, height, width, len(self.labels), self.recipe.dropout)


class Run:
    """A run folder.

    Attributes:
        folder: where it lies.
        config: what was trained on and how.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config

    @classmethod
    def create(cls, folder: Path, config: RunConfig) -> Run:
        """Start a run in a new or empty folder.

        Raises:
            RunError: the folder holds something already.
        """
        claim_folder(folder)
        _write_atomically(
            folder / "run.json", json.dumps({"format_version": FORMAT_VERSION, **asdict(config)}, indent=1)
        )
        return cls(folder, config)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a run that was trained before.

        Raises:
            RunError: no run there, or one of another format.
        """
        try:
            facts = json.loads((folder / "run.json").read_text())
            if facts.pop("format_version") != FORMAT_VERSION:
                raise RunError(f"{folder} was written by another version of evalmode: train again")
            facts["recipe"] = Recipe(**facts["recipe"])
            for name in ("labels", "shape", "image_size"):
                facts[name] = facts[name] and tuple(facts[name])
            PixelContract(*map(int, facts["shape"]))
            return cls(folder, RunConfig(**facts))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{folder} holds no run: {error}") from error

    def save_weights(self, network: nn.Module) -> None:
        """Replace the best weights, whole or not at all."""
        tensors = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
        _write_atomically(self.folder / "best.safetensors", safetensors.torch.save(tensors))

    def has_weights(self) -> bool:
        """True once ``save_weights`` was called."""
        return (self.folder / "best.safetensors").exists()

    def load_weights(self, network: nn.Module) -> None:
        """Put the best weights into a network of this run.

        Raises:
            RunError: there are none, or they are damaged.
        """
        path = self.folder / "best.safetensors"
        try:
            network.load_state_dict(safetensors.torch.load_file(path))
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise RunError(f"{path} cannot be loaded: {error}") from error

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")


def claim_folder(folder: Path) -> None:
    """Make a folder for a run.

    Raises:
        RunError: it holds something already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error}") from error
    if any(folder.iterdir()):
        raise RunError(f"{folder} is not empty: choose another --out, or remove it")


def _write_atomically(path: Path, content: str | bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
