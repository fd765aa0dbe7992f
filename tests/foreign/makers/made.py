"""What every maker reads and writes: the photos, a fitted last layer, and the answers of the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

SHARPNESS = 8.0  # of the answers of a fitted layer


def read_arguments() -> tuple[Path, Path]:
    """The two arguments of every maker: the folder of photos, and the folder to write."""
    photos, out = map(Path, sys.argv[1:])
    (out / "network").mkdir(parents=True)
    return photos, out


def list_labels(photos: Path) -> list[str]:
    """The labels, sorted."""
    return sorted(path.name for path in photos.iterdir() if path.is_dir())


def list_photos(photos: Path) -> list[Path]:
    """The photos, sorted."""
    return sorted(path for path in photos.glob("*/*") if path.is_file())


def list_targets(photos: Path) -> np.ndarray:
    """The index of the label of each photo, int (N,)."""
    labels = list_labels(photos)
    return np.array([labels.index(path.parent.name) for path in list_photos(photos)])


def fit_layer(features: np.ndarray, targets: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit a last layer by ridge regression: a small network with random weights becomes better than guessing.

    Args:
        features: float (N, D), what the network's last layer takes.
        targets: int (N,), the labels.
        labels: K, how many labels there are.

    Returns:
        Weights, float32 (D, K), and biases, float32 (K,): features @ weights + biases are logits.
    """
    values = features.astype(np.float64)
    mean = values.mean(axis=0)
    centred = values - mean
    gram = centred.T @ centred
    penalty = 1e-3 * np.trace(gram) * np.eye(len(gram))
    hot = np.eye(labels)[targets]
    weights = SHARPNESS * np.linalg.solve(gram + penalty, centred.T @ (hot - hot.mean(axis=0)))
    return weights.astype(np.float32), (-mean @ weights).astype(np.float32)


def write_made(
    photos: Path,
    out: Path,
    probabilities: np.ndarray,
    packages: Sequence[str],
    options: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> None:
    """Write what the library answers, and what its files do not hold.

    Args:
        photos: The folder of photos.
        out: The folder of the maker.
        probabilities: float (N, K), as the library computes them for ``list_photos``.
        packages: The packages that made them; the first is the library.
        options: Options of ``evalmode certify``; paths are relative to ``out``.
        labels: K labels in the order of the columns; by default sorted.
    """
    names = [str(path.relative_to(photos)) for path in list_photos(photos)]
    columns = list(labels) or list_labels(photos)
    values = np.asarray(probabilities, np.float32)
    assert values.shape == (len(names), len(columns)), values.shape
    np.savez(out / "answers.npz", names=names, labels=columns, probabilities=values)
    made = {"packages": {name: version(name) for name in packages}, "options": list(options)}
    (out / "options.json").write_text(json.dumps(made, indent=1) + "\n")
    answers = np.array(columns)[values.argmax(axis=1)]
    right = (answers == [Path(name).parent.name for name in names]).mean()
    print(f"{out}: {right:.3f} of {len(names)} photos are right")
