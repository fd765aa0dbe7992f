"""The features of a run on the disk: computed once, and used again when the training is resumed.

Pooled features train the head, and the output of the last frozen stage trains the stages after it.

Shapes: N images, V views, D features.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from evalmode.artifact.tensors import Floats
from evalmode.errors import DataError
from evalmode.files import write_atomically
from evalmode.images.pixels import Pixels
from training.callbacks import Callbacks
from training.datasets import Dataset, Split, release_pages
from training.datasets.dataset import SPLITS, Indices
from training.datasets.storage import reserve
from training.features import Extractor, Features, open_backbone, run_shared
from training.networks import PretrainedNetwork
from training.ranks import Ranks
from training.run_config import RunConfig
from training.views import make_views

HEAD_VIEWS = 2  # views whose features train the head; more change its accuracy by less than its noise


class FeatureCache:
    """The features of a run on the disk.

    Features are complete once their JSON file exists; it holds their SHA-256 and what they were computed from. The maps
    of the training images are removed at the end of the training, because they take gigabytes.

    Args:
        folder: The run folder.
        network: The network with its pretrained weights.
        config: The run. Its recipe decides the views, and the stage after which maps are kept.
        dataset: The data set of the run.
    """

    def __init__(self, folder: Path, network: PretrainedNetwork, config: RunConfig, dataset: Dataset) -> None:
        self._folder = folder / "features"
        self._network = network
        self._data_digest = config.data_digest
        self._recipe = config.recipe
        self._dataset = dataset
        self._frozen = len(network.stages) - config.recipe.fine_tune

    def load_or_compute(self, ranks: Ranks, callbacks: Callbacks) -> Features:
        """Return the features, and compute them if they are not in the folder.

        Args:
            ranks: The processes that share the work. All of them get all features, in a folder each.
            callbacks: ``on_load`` is called.

        Raises:
            DataError: The maps do not fit onto the disk.
        """
        key = self._describe()
        if ranks.count > 1 or not self._is_complete(key):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            features = self._compute(ranks, callbacks)
            content = safetensors.numpy.save(vars(features))
            write_atomically(self._folder / "features.safetensors", content)
            facts = {**key, "sha256": hashlib.sha256(content).hexdigest()}
            write_atomically(self._folder / "features.json", json.dumps(facts, indent=1))
            return features
        return Features(**safetensors.numpy.load((self._folder / "features.safetensors").read_bytes()))

    def open_maps(self) -> tuple[Split, Split]:
        """Open the maps of the training images, (N, V, ...), and of the validation images, (N, ...).

        Returns:
            Splits of float16 arrays, or uint8 pixels if no stage is frozen; that of the training images is in a
            memory-mapped file.
        """
        train = np.load(self._folder / "train-maps.npy", mmap_mode="r")
        val = np.load(self._folder / "val-maps.npy", mmap_mode="r+")[:, 0]
        return Split(train, self._dataset.train.targets), Split(val, self._dataset.val.targets)

    def remove_maps(self) -> None:
        """Remove the maps; the features stay."""
        for path in self._folder.glob("*-maps.npy"):
            path.unlink()

    def _describe(self) -> dict[str, Any]:
        """Describe what the features are computed from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._network.state_dict().items()):
            if not name.startswith("head."):
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        recipe = self._recipe
        return {
            "backbone": digest.hexdigest(),
            "data": self._data_digest,
            "frozen_stages": self._frozen,
            "views": recipe.views,
            "mirror": recipe.mirror,
            "seed": recipe.seed,
        }

    def _is_complete(self, key: dict[str, Any]) -> bool:
        """Return whether the folder holds these features, and the maps that are needed."""
        try:
            facts = json.loads((self._folder / "features.json").read_text("utf-8"))
            digest = hashlib.sha256((self._folder / "features.safetensors").read_bytes()).hexdigest()
        except (OSError, ValueError):
            return False
        return (not self._recipe.fine_tune or self._has_maps()) and facts == {**key, "sha256": digest}

    def _has_maps(self) -> bool:
        """Return whether both files of maps have the size that their header says."""
        try:
            for name in ("train", "val"):
                np.load(self._folder / f"{name}-maps.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError):  # of an empty file
            return False
        return True

    def _compute(self, ranks: Ranks, callbacks: Callbacks) -> Features:
        """Run the backbone on every view of every image."""
        data, fine_tune = self._dataset, self._recipe.fine_tune
        run = open_backbone(self._network, self._frozen if fine_tune else 0, data.contract.shape)
        views = {name: self._recipe.views if name == "train" else 1 for name in SPLITS}
        total = sum(count * len(getattr(data, name)) for name, count in views.items())
        found, done = {}, 0
        for name, count in views.items():
            split: Split = getattr(data, name)
            features, maps = _Rows(self._folder), _Rows(self._folder, f"{name}-maps.npy")
            for view, rows, pooled, before in self._run_views(run, split, count, ranks):
                if view < HEAD_VIEWS:
                    features.write((min(count, HEAD_VIEWS), len(split)), (view, rows), pooled)
                if fine_tune and name != "test":
                    maps.write((len(split), count), (rows, view), before)
                done += len(rows)
                callbacks.on_load("features", done, total)
            maps.close()
            found[name] = features.array
        return Features(found["train"], found["val"][0], found["test"][0])

    def _run_views(
        self, run: Extractor, split: Split, views: int, ranks: Ranks
    ) -> Iterator[tuple[int, Indices, Floats, npt.NDArray[Any]]]:
        """Yield the number of a view, the rows of some images, and the two outputs of the backbone for them."""
        recipe = self._recipe
        for view in range(views):

            def load(rows: Indices, view: int = view) -> Pixels:
                return make_views(split.images[rows], view, rows, recipe.mirror, recipe.seed)

            for rows, pooled, before in run_shared(run, load, len(split), ranks):
                yield view, rows, pooled, before
                release_pages(split.images)


class _Rows:
    """An array that is created when the shape of its rows is known: in memory, or in a file.

    Args:
        folder: The folder of the file.
        name: The name of the file; "" for an array in memory.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        self._path = folder / name if name else None
        self._array: npt.NDArray[Any] | None = None

    @property
    def array(self) -> npt.NDArray[Any]:
        """The array; at least one row was written."""
        assert self._array is not None
        return self._array

    def write(self, count: tuple[int, int], place: tuple[Any, Any], values: npt.NDArray[Any]) -> None:
        """Write values into the rows at a place.

        Args:
            count: The first two axes of the array.
            place: The indices along them.
            values: The rows, (n, ...). Floating-point values in a file become float16.

        Raises:
            DataError: The file does not fit onto the disk.
        """
        if self._array is None:
            self._array = self._create((*count, *values.shape[1:]), values.dtype)
        with np.errstate(over="ignore"):
            self._array[place] = values
        if self._path and not np.isfinite(self._array[place]).all():
            raise DataError("the output of a frozen stage is larger than float16 can hold: choose --fine-tune none")
        release_pages(self._array)

    def _create(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        if self._path is None:
            return np.empty(shape, dtype)
        kept = np.dtype(np.float16) if np.issubdtype(dtype, np.floating) else dtype
        needed, free = math.prod(shape) * kept.itemsize, shutil.disk_usage(self._path.parent).free
        if needed > free:
            raise DataError(
                f"the features of {shape[0]:,} images in {shape[1]} views need {needed:,} bytes in {self._path.parent} "
                f"and {free:,} are free: choose another --out, or --fine-tune none"
            )
        array = np.lib.format.open_memmap(self._path, "w+", kept, shape)
        try:
            with self._path.open("r+b") as file:
                reserve(file, self._path.stat().st_size)
        except OSError as error:
            raise DataError(f"{self._path} cannot be written: {error.strerror}") from error
        return array

    def close(self) -> None:
        """Write the file to the disk."""
        if isinstance(self._array, np.memmap):
            self._array.flush()
            release_pages(self._array)
