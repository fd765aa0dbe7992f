"""The run folder: what training writes, and what the export and the report read.

``run.json`` holds the data and the recipe, ``metrics.jsonl`` a line for each epoch and one for the result.
``initial.safetensors`` holds the weights before the first step, ``best.safetensors`` those of the epoch that validated
best, and ``exact.safetensors`` the best weights with recomputed batch norm statistics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from evalmode.errors import UsageError
from evalmode.files import write_atomically
from training.errors import RunError
from training.networks import check_network, explain, explain_errors
from training.run_config import RunConfig
from training.run_metrics import Result, RunMetrics
from training.tensors import describe_difference, read_tensors, save_tensors

if TYPE_CHECKING:
    from training.publish import Artifact

FORMAT_VERSION = 3
CHOSEN = "chosen.json"  # names the folder of the chosen run, if several networks were compared
REPORT = "report.html"
MEAN, VARIANCE = ".running_mean", ".running_var"  # suffixes of batch norm statistics in the state of a network
BEST, INITIAL, EXACT = "best", "initial", "exact"  # exact: the best weights with recomputed batch norm statistics


class Run:
    """A run folder; ``create``, ``resume`` and ``open`` check it.

    Args:
        folder: Path of the folder.
        config: The data and the recipe of the run.

    Attributes:
        folder: Path of the folder.
        config: The data and the recipe of the run.
        metrics: The figures of its epochs, and the result.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config
        self.metrics = RunMetrics(folder / "metrics.jsonl")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @classmethod
    def create(cls, folder: Path, config: RunConfig) -> Run:
        """Start a run in a new or empty folder.

        Args:
            folder: Path of the folder; it and its parents are created.
            config: The data and the recipe of the run.

        Returns:
            The run, without weights yet.

        Raises:
            RunError: The folder is not empty.
        """
        claim_folder(folder)
        write_atomically(
            folder / "run.json", json.dumps({"format_version": FORMAT_VERSION, **asdict(config)}, indent=1)
        )
        return cls(folder, config)

    @classmethod
    def resume(cls, folder: Path, config: RunConfig) -> Run:
        """Resume a run, or start it if its process died before ``run.json`` was written.

        Args:
            folder: Path of the folder.
            config: The data and the recipe; they must equal those of the run.

        Returns:
            The run.

        Raises:
            RunError: The folder holds other files, or a run with other data or another recipe.
        """
        if not (folder / "run.json").exists():
            for partial in folder.glob("run.json.partial"):
                partial.unlink()
            return cls.create(folder, config)
        run = cls.open(folder)
        run.check_same(config, "now")
        return run

    def check_same(self, config: RunConfig, source: str) -> None:
        """Refuse to continue with other data or another recipe.

        Args:
            config: The data and the recipe to continue with.
            source: Where they come from, for the error message, such as "now" or "process 1".

        Raises:
            RunError: They differ from those of the run.
        """
        if differences := self.config.list_differences(config, source):
            raise RunError(
                f"{self.folder} was started with other options or data: {'; '.join(differences)}. Give the same "
                "options, or another --out"
            )

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> Run:
        """Open an existing run.

        Example:
            ``evalmode.Run.open("run").read_result().test_accuracy``

        Args:
            folder: Path of the run folder.

        Returns:
            The run.

        Raises:
            RunError: The folder holds no run, or one of another format version.
        """
        folder = _follow_choice(Path(folder))
        try:
            facts = json.loads((folder / "run.json").read_text("utf-8"))
            if facts.pop("format_version") != FORMAT_VERSION:
                raise RunError(f"{folder} was written by another version of evalmode: train again")
            return cls(folder, RunConfig.parse(facts))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise RunError(f"{folder} holds no run: {error}") from error

    def save_weights(self, network: nn.Module, which: str = BEST) -> None:
        """Save weights and statistics; an interrupted write leaves the old ones in place.

        Args:
            network: The network whose state is saved.
            which: ``BEST``, ``INITIAL`` or ``EXACT``.

        Raises:
            OSError: The file cannot be written.
        """
        write_atomically(self._weights(which), save_tensors(network.state_dict()))

    def has_weights(self, which: str = BEST) -> bool:
        """Check whether weights were saved: ``BEST``, ``INITIAL`` or ``EXACT``."""
        return self._weights(which).exists()

    def load_weights(self, network: nn.Module, which: str = BEST) -> None:
        """Load saved weights and statistics into a network.

        Args:
            network: A network of this run, changed in place.
            which: ``BEST``, ``INITIAL`` or ``EXACT``.

        Raises:
            RunError: The file is missing or damaged, or holds the weights of another network.
        """
        weights = self.read_weights(which)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            reason = describe_difference(network, weights) or explain(error)
            raise RunError(f"{self._weights(which)} cannot be loaded: {reason}") from error

    def load_network(self, which: str = BEST) -> nn.Module:
        """Build the network of this run again, and load saved weights.

        Args:
            which: ``BEST``, ``INITIAL`` or ``EXACT``.

        Returns:
            The network, on the CPU and in eval mode.

        Raises:
            RunError: The file is missing or damaged, or holds the weights of another network.
            NetworkError: The code of the network cannot be imported, fails, or does not return logits.
        """
        config = self.config
        network = config.build_network()
        with explain_errors(config.recipe.network, "when it loads its weights"):
            self.load_weights(network, which)
        check_network(config.recipe.network, network, config.shape, len(config.labels))
        return network

    def read_statistics(self, which: str) -> dict[str, Tensor]:
        """Read the moving means and variances of batch norm layers from saved weights, by name.

        Args:
            which: ``BEST``, ``INITIAL`` or ``EXACT``.

        Returns:
            Statistics, float32 (channels,) each.

        Raises:
            RunError: The file is missing or damaged.
        """
        return {name: tensor for name, tensor in self.read_weights(which).items() if name.endswith((MEAN, VARIANCE))}

    def read_weights(self, which: str) -> dict[str, Tensor]:
        """Read saved weights and statistics, by name.

        Args:
            which: ``BEST``, ``INITIAL`` or ``EXACT``.

        Returns:
            Tensors on the CPU.

        Raises:
            RunError: The file is missing or damaged.
        """
        return read_tensors(self._weights(which))

    def save_logits(self, logits: Mapping[str, Tensor]) -> None:
        """Save the logits of the result.

        Args:
            logits: Under ``val`` and ``test``, float32 (N, K) in the order of the images.
        """
        write_atomically(self.folder / "logits.safetensors", save_tensors(dict(logits)))

    def read_logits(self) -> dict[str, Tensor]:
        """Read the saved logits; empty if the run has none.

        Raises:
            RunError: The file is damaged.
        """
        path = self.folder / "logits.safetensors"
        return read_tensors(path) if path.exists() else {}

    def _weights(self, which: str) -> Path:
        return self.folder / f"{which}.safetensors"

    def read_result(self) -> Result:
        """Read the result of the training.

        Raises:
            RunError: The training is not finished, or the file is damaged.
        """
        return self.metrics.read_result()

    def export(self, repository: str | PathLike[str], name: str, **options: Any) -> Artifact:
        """Export the run and publish the artifact in a model repository.

        Args:
            repository: Folder of the model repository.
            name: Name of the model.
            **options: Callbacks, and fields of ``ExportOptions``, as in `evalmode.export`.

        Returns:
            The published artifact.

        Raises:
            ExportRefused, ProofFailed: A check failed; nothing was published.
        """
        import evalmode

        return evalmode.export(self, repository, name, **options)


def _follow_choice(folder: Path) -> Path:
    """Return the folder of the chosen run, if several networks were compared in this one.

    Raises:
        RunError: ``chosen.json`` is damaged.
    """
    path = folder / CHOSEN
    if not path.exists():
        return folder
    try:
        return folder / str(json.loads(path.read_text("utf-8"))["network"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def prepare_folder(folder: Path, resume: bool) -> None:
    """Check the folder of a single training, before the data are loaded.

    Args:
        folder: Path of the run folder.
        resume: Whether a training is continued; otherwise see ``claim_folder``.

    Raises:
        RunError: The folder holds the runs of several networks, or cannot be claimed.
    """
    if not resume:
        claim_folder(folder)
    elif not (folder / "run.json").exists() and any(folder.glob("*/run.json")):
        raise RunError(f"{folder} holds the trainings of --compare: give --compare, too, to resume them")


def claim_folder(folder: Path) -> None:
    """Create a folder for a run, with its parents; an empty folder is used as it is.

    Args:
        folder: Path of the folder.

    Raises:
        RunError: The folder is not empty, or cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error}") from error
    if any(folder.iterdir()):
        raise RunError(f"{folder} is not empty: choose another --out, or remove it; --resume continues a run")
