"""Load the data set of a training, or of a run again."""

from __future__ import annotations

from dataclasses import replace
from os import fspath
from pathlib import Path

import platformdirs

from training.callbacks import Callbacks
from training.datasets import Dataset, ReadOptions, load_dataset
from training.errors import RunError
from training.run import Run


def load_data(source: str, read: ReadOptions, seed: int, cache: Path | None, callbacks: Callbacks) -> Dataset:
    """Load a data set, and report its progress and its warnings.

    Args:
        source: Path or name of the data set.
        read: How images are read.
        seed: Decides which images are carved for missing splits.
        cache: Folder for published data sets; None for the cache folder of the user.
        callbacks: ``on_load`` and ``on_warning`` are called.

    Returns:
        The data set.

    Raises:
        DataError: The data cannot be used.
    """
    folder = platformdirs.user_cache_path("evalmode") if cache is None else Path(cache)
    dataset = load_dataset(source, read, seed, cache=folder, progress=callbacks.on_load, notify=callbacks.on_notice)
    for warning in dataset.warnings:
        callbacks.on_warning(warning)
    return dataset


def reload_data(run: Run, data: str | None, cache: Path | None, callbacks: Callbacks) -> Dataset:
    """Load the data set of a run again.

    Args:
        run: The run.
        data: Present place of the data, if they were moved; None if they were not.
        cache: Folder for published data sets; None for the cache folder of the user.
        callbacks: ``on_load`` and ``on_warning`` are called.

    Returns:
        The data set.

    Raises:
        DataError: The data cannot be used.
        RunError: The data have changed since the training.
    """
    config = run.config
    read = replace(config.read_options, labels=config.find_labels(data))
    dataset = load_data(fspath(data or config.data), read, config.recipe.seed, cache, callbacks)
    if dataset.digest() != config.data_digest:
        raise RunError(
            f"{dataset.source} is not what {run.folder} was trained on: its digest differs; give --data or train again"
        )
    return dataset
