"""The run folder: what a training left behind, and what the export and the report need of it.

``run.json`` says how it was trained, ``metrics.jsonl`` has a line an epoch, ``initial.safetensors`` and
``best.safetensors`` hold the weights before the first step and those that validated best.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from serving.files import naming, write_atomically
from serving.limits import OWN_IMAGES, Limits
from serving.pixels import PixelContract
from training.datasets import Dataset
from training.errors import RunError
from training.networks import build_network, check_network, explain, explain_errors
from training.recipe import Recipe

FORMAT_VERSION = 2
MEAN, VARIANCE = ".running_mean", ".running_var"  # what batch norm's statistics are called in a network's state
BEST, INITIAL, EXACT = "best", "initial", "exact"  # exact: the best with batch norm statistics recomputed


@dataclass(frozen=True)
class RunConfig:
    """What a run was trained on and how: enough to build the network and load the data again."""

    data: str
    image_size: tuple[int, int] | None
    skip_unreadable: bool
    data_digest: str
    labels: tuple[str, ...]
    shape: tuple[int, int, int]  # height, width, channels
    recipe: Recipe
    max_image_bytes: int = OWN_IMAGES.max_image_bytes
    max_image_pixels: int = OWN_IMAGES.max_image_pixels

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        image_size: tuple[int, int] | None,
        skip_unreadable: bool,
        recipe: Recipe,
        limits: Limits = OWN_IMAGES,
    ) -> RunConfig:
        """Record a data set, how it was read, and a recipe.

        Args:
            dataset: what is trained on.
            image_size: (height, width) that images were brought to.
            skip_unreadable: whether files that cannot be read were left out.
            recipe: how it is trained.
            limits: how large an image may be.
        """
        source = str(Path(dataset.source).resolve()) if Path(dataset.source).exists() else dataset.source
        shape = dataset.contract.shape
        sizes = limits.max_image_bytes, limits.max_image_pixels
        return cls(source, image_size, skip_unreadable, dataset.digest(), dataset.labels, shape, recipe, *sizes)

    @property
    def limits(self) -> Limits:
        """How large an image of the data may be."""
        return Limits(self.max_image_bytes, self.max_image_pixels)

    def build_network(self) -> nn.Module:
        """The network of this run, freshly initialised."""
        recipe = self.recipe
        return build_network(recipe.network, self.shape, len(self.labels), recipe.width, recipe.dropout)


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
        write_atomically(
            folder / "run.json", json.dumps({"format_version": FORMAT_VERSION, **asdict(config)}, indent=1)
        )
        return cls(folder, config)

    @classmethod
    def resume(cls, folder: Path, config: RunConfig) -> Run:
        """Go on with a run, or start it where its process died before it was written.

        Raises:
            RunError: the folder holds something else, or a run of other data or another recipe.
        """
        if not (folder / "run.json").exists():
            for partial in folder.glob("run.json.partial"):
                partial.unlink()
            return cls.create(folder, config)
        run = cls.open(folder)
        run.check_same(config, "now")
        return run

    def check_same(self, config: RunConfig, who: str) -> None:
        """Refuse to go on with other data or another recipe.

        Args:
            config: what is wanted.
            who: wants it.

        Raises:
            RunError: they differ.
        """
        ours, theirs = _flatten(self.config), _flatten(config)
        differ = [f"{name} {ours[name]!r}, {who} {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]
        if differ:
            raise RunError(
                f"{self.folder} was begun otherwise: {'; '.join(differ)}. Give the same options, or another --out"
            )

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a run that was trained before.

        Raises:
            RunError: no run there, or one of another format.
        """
        try:
            facts = json.loads((folder / "run.json").read_text("utf-8"))
            if facts.pop("format_version") != FORMAT_VERSION:
                raise RunError(f"{folder} was written by another version of evalmode: train again")
            facts["recipe"] = Recipe(**facts["recipe"])
            for name in ("labels", "shape", "image_size"):
                facts[name] = facts[name] and tuple(facts[name])
            PixelContract(*map(int, facts["shape"]))
            return cls(folder, RunConfig(**facts))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{folder} holds no run: {error}") from error

    def save_weights(self, network: nn.Module, which: str = BEST) -> None:
        """Replace the best, the initial or the exact weights, whole or not at all."""
        write_atomically(self._weights(which), save_tensors(network.state_dict()))

    def has_weights(self, which: str = BEST) -> bool:
        """True once these weights were saved."""
        return self._weights(which).exists()

    def load_weights(self, network: nn.Module, which: str = BEST) -> None:
        """Put the best, the initial or the exact weights into a network of this run.

        Raises:
            RunError: there are none, or they are damaged.
        """
        weights = self.read_weights(which)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            why = tell_difference(network, weights) or explain(error)
            raise RunError(f"{self._weights(which)} cannot be loaded: {why}") from error

    def load_network(self, which: str = BEST) -> nn.Module:
        """The network of this run with the best, the initial or the exact weights, in eval mode.

        Raises:
            RunError: there are no such weights, they are damaged, or of another network than the code builds now.
            NetworkError: the network's code cannot be found, fails, or returns something else than logits.
        """
        config = self.config
        network = config.build_network()
        with explain_errors(config.recipe.network, "when it takes its weights"):
            self.load_weights(network, which)
        check_network(config.recipe.network, network, config.shape, len(config.labels))
        return network

    def read_statistics(self, which: str) -> dict[str, Tensor]:
        """Batch norm's moving means and variances among the best, the initial or the exact weights, by name.

        Raises:
            RunError: there are none, or they are damaged.
        """
        return {name: tensor for name, tensor in self.read_weights(which).items() if name.endswith((MEAN, VARIANCE))}

    def read_weights(self, which: str) -> dict[str, Tensor]:
        """The best, the initial or the exact weights and statistics, by name.

        Raises:
            RunError: there are none, or they are damaged.
        """
        path = self._weights(which)
        try:
            return safetensors.torch.load(path.read_bytes())  # load_file takes no path that is not UTF-8
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise RunError(f"{path} cannot be loaded: {error}") from error

    def _weights(self, which: str) -> Path:
        return self.folder / f"{which}.safetensors"

    def keep_metrics(self, epoch: int) -> None:
        """Forget the lines of ``metrics.jsonl`` after an epoch, and what was written of one when a process died."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text("utf-8").splitlines(keepends=True) if epoch and path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line).get("epoch", epoch + 1) <= epoch]
        write_atomically(path, "".join(kept))

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        path = self.folder / "metrics.jsonl"
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())


def tell_difference(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """What makes weights those of another network, by name and shape; "" if nothing does.

    Args:
        network: that is to take them.
        weights: by name, with the buffers.
    """
    theirs = {(name, tuple(tensor.shape)) for name, tensor in weights.items()}
    ours = {(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    if ours == theirs:
        return ""
    name, shape = min(ours ^ theirs)
    where = "this one" if (name, shape) in ours else "that one"
    return f"it is of another network: {name} {shape} is in {where} only. Go on with the code that it was trained with"


def _flatten(config: RunConfig) -> dict[str, Any]:
    facts = asdict(config)
    return {**facts.pop("recipe"), **facts}


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
        raise RunError(f"{folder} is not empty: choose another --out, or remove it; --resume goes on with a run")


def save_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Tensors by name as the bytes of a safetensors file; what shares memory is written once for each name."""
    apart: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous().cpu()
        place = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if place in places else own
        places.add(place)
    return safetensors.torch.save(apart)
