"""Fixtures of the training tests: the digits, and one run on them, trained and exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evalmode.certification.metrics import Quality
from evalmode.runtime.loading import load_model
from evalmode.runtime.model import Model
from training.agreement import Agreement
from training.datasets import Dataset, ReadOptions, Split, load_dataset
from training.export import export_run
from training.loop import train
from training.recipe import Recipe
from training.run import Run
from training.run_config import RunConfig
from training.statistics import recompute_statistics

StartRun = Callable[..., tuple[Run, Any]]  # tests take the layers of the network by their names


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Equal bits need an equal number of threads; on busy cores, several threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def few(digits: Dataset) -> Split:
    """The first 96 training digits: three steps of 32."""
    return Split(digits.train.images[:96], digits.train.targets[:96])


@pytest.fixture
def start_run(tmp_path: Path, digits: Dataset) -> StartRun:
    """Create a run on the digits and its initial network: ``start_run("name", epochs=2)``."""

    def start(name: str = "run", **recipe: object) -> tuple[Run, nn.Module]:
        config = RunConfig.of(digits, ReadOptions(), Recipe(**recipe))  # type: ignore[arg-type]
        torch.manual_seed(config.recipe.seed)
        return Run.create(tmp_path / name, config), config.build_network()

    return start


@dataclass(frozen=True)
class Exported:
    """A trained run, its artifact, and the artifact loaded as a model."""

    run: Run
    train: Split
    artifact: bytes
    agreement: Agreement
    quality: Quality
    path: Path
    model: Model

    def load_network(self) -> nn.Module:
        """Load the exported weights into a new torch network, which the caller may change."""
        network = self.run.config.build_network()
        self.run.load_weights(network)
        recompute_statistics(network, self.train)
        return network


@pytest.fixture(scope="session")
def exported(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Eight epochs on the digits, exported once for all tests; moving statistics need as many to converge."""
    folder = tmp_path_factory.mktemp("exported")
    run = Run.create(folder / "run", RunConfig.of(digits, ReadOptions(), Recipe(epochs=8)))
    torch.manual_seed(0)
    train(run, run.config.build_network(), digits.train, digits.val)
    exported = export_run(run, digits)
    path = folder / "model.onnx"
    path.write_bytes(exported.artifact)
    return Exported(run, digits.train, exported.artifact, exported.agreement, exported.quality, path, load_model(path))
