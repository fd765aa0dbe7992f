"""Compare a network with its own library: the answers that the library gives for the same images.

Shapes: N images, M of them with an answer of the library, K labels.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evalmode.artifact.tensors import Array, Floats, softmax
from evalmode.certification.found.labels import make_labels
from evalmode.certification.images import Labelled
from evalmode.certification.metrics import Indices
from evalmode.certification.npz_files import read_npz
from evalmode.certification.wrap import Kind
from evalmode.errors import ReferenceMismatch, UsageError

MAX_DIFFERENCE = 1e-3  # of a probability
NEAR_TIE = 2 * MAX_DIFFERENCE  # two probabilities that are this close may change places
MAX_PROBABILITY = 1 + 1e-3  # of float16, and rounded for people
SLIGHT_DIFFERENCE = 0.1  # of a probability: pixels that differ by little, as by another filter or decoder
KINDS = ("probabilities", "logits")


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of a network's own library.

    Attributes:
        source: The file, or the library with its version.
        rows: The positions of the images that they belong to, int64 (M,).
        probabilities: float32 (M, K).
        has_same_pixels: Whether the library was given the decoded pixels, and not the files of the images.
        states_labels: Whether the labels of the columns are stated; if not, they are taken to be those of the network.
    """

    source: str
    rows: Indices
    probabilities: Floats
    has_same_pixels: bool = False
    states_labels: bool = False


@dataclass(frozen=True)
class Reference:
    """How well an artifact agrees with the network's own library.

    Attributes:
        source: The file of the library's answers, or the library with its version.
        images: The number of images compared, M.
        largest_difference: The largest difference of a probability.
        near_ties: The number of images whose best two probabilities in the library are closer than ``NEAR_TIE``.
        changed: The number of images with another predicted label than in the library; all of them are near ties.
    """

    source: str
    images: int
    largest_difference: float
    near_ties: int
    changed: int


def check_answers(answers: Answers, logits: Floats, images: Labelled, assumed: Sequence[str] = ()) -> Reference:
    """Check that a network answers as its own library does.

    Args:
        answers: The answers of the library.
        logits: Those of the network for all images, float32 (N, K).
        images: The images.
        assumed: What was assumed about them, in sentences; the message of a mismatch names it.

    Returns:
        The differences, all within the limits.

    Raises:
        ReferenceMismatch: A probability differs by more than ``MAX_DIFFERENCE``, or the predicted label of an image
            changes that is no near tie.
    """
    differences = np.abs(softmax(logits[answers.rows]) - answers.probabilities).max(axis=1)
    best_two = np.sort(answers.probabilities, axis=1)[:, -2:]
    near_tie = best_two[:, 1] - best_two[:, 0] < NEAR_TIE
    changed = logits[answers.rows].argmax(1) != answers.probabilities.argmax(1)
    wrong, worst = int((changed & ~near_tie).sum()), int(differences.argmax())
    if not differences[worst] <= MAX_DIFFERENCE or wrong:
        raise ReferenceMismatch(
            f"{answers.source} has other answers: probabilities differ by up to {differences[worst]:.2g} (limit "
            f"{MAX_DIFFERENCE:g}; {images.paths[answers.rows[worst]]}), and {wrong} of {len(differences)} predicted "
            f"labels change: {'; '.join((_ask_for_cause(answers, float(differences[worst])), *assumed))}"
        )
    return Reference(
        answers.source, len(differences), float(differences[worst]), int(near_tie.sum()), int(changed.sum())
    )


def read_answers(path: Path, images: Labelled, labels: tuple[str, ...]) -> Answers:
    """Read the answers of a library from an ``.npz`` file.

    Args:
        path: The file. ``names`` (M,) are paths of the images relative to their folder or to that of their table, such
            as ``cats/1.jpg``; ``probabilities`` or ``logits`` are (M, K). ``labels`` (K,) may state the order of the
            columns, by default that of the network.
        images: The images.
        labels: K labels, in the order of the network's output.

    Returns:
        The answers. Images without an answer are not compared.

    Raises:
        UsageError: The file is damaged, or does not fit the images or the labels.
        OSError: The file cannot be read.
    """
    arrays = read_npz(path)
    found = [kind for kind in KINDS if kind in arrays]
    if "names" not in arrays or len(found) != 1:
        raise UsageError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}: expected names, and probabilities or logits"
        )
    names, values = _read_texts(path, "names", arrays["names"]), arrays[found[0]]
    if values.dtype.kind not in "fiu":
        raise UsageError(f"{path}: {found[0]} are {values.dtype}: expected numbers")
    if values.shape != (len(names), len(labels)) or not len(names) or not np.isfinite(values.astype(np.float64)).all():
        raise UsageError(
            f"{path}: {found[0]} has shape {values.shape} or a value that is NaN or infinite: expected finite numbers "
            f"of shape ({len(names)}, {len(labels)}), for each name and label, and at least one name"
        )
    if "labels" in arrays:
        columns = make_labels(_read_texts(path, "labels", arrays["labels"]), f"{path}: labels")
        if columns.problem:
            raise UsageError(columns.problem)
        values = values[:, _find_columns(path, columns.value, labels)]
    rows, values = _find_rows(path, names, images), values.astype(np.float32)
    if found == ["logits"]:
        return Answers(path.name, rows, softmax(values).astype(np.float32), states_labels="labels" in arrays)
    sums = values.sum(axis=1, keepdims=True)
    if values.min() < 0 or values.max() > MAX_PROBABILITY or not sums.all():
        raise UsageError(
            f"{path}: probabilities are {values.min():g} to {values.max():g}: expected 0 to 1; logits are named logits"
        )
    shares = values / sums  # of labels that are judged each by itself, too
    return Answers(path.name, rows, shares, states_labels="labels" in arrays)


def _ask_for_cause(answers: Answers, difference: float) -> str:
    """What may be wrong, by where the answers are from and the largest difference of a probability."""
    if answers.has_same_pixels:
        return (
            "both have the same pixels, so the export to ONNX computes something else: does forward draw random "
            "numbers, keep a state, or do something else during the export?"
        )
    if difference < SLIGHT_DIFFERENCE:
        return (
            "are resize, interpolation, antialiasing and the JPEG decoder those of the library? --no-antialias for "
            "tf.image and OpenCV; TensorFlow decodes JPEGs as others do with dct_method='INTEGER_ACCURATE', and "
            "tf.image does not round resized pixels to whole numbers, as a server does"
        )
    return "are size, resize, interpolation, scale, mean, std and the order of the labels right?"


def to_answers(source: str, values: Floats, kind: Kind) -> Answers:
    """Make answers of the scores that a library computed for the decoded pixels of all images.

    Args:
        source: What to call the library.
        values: float32 (N, K).
        kind: What the values are: "logits", "probabilities" or "shares".
    """
    if kind == "logits":
        values = softmax(values).astype(np.float32)
    shares = values / values.sum(axis=1, keepdims=True)
    return Answers(source, np.arange(len(values)), shares, has_same_pixels=True)


def _read_texts(path: Path, name: str, array: Array) -> list[str]:
    """The strings of an array, in Unicode's normal form C: macOS names folders in form D."""
    if array.dtype.kind not in "US":
        raise UsageError(f"{path}: {name} are {array.dtype}: expected strings")
    texts = np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array
    return [unicodedata.normalize("NFC", text) for text in texts.ravel().tolist()]


def _find_columns(path: Path, columns: Sequence[str], labels: tuple[str, ...]) -> list[int]:
    """The position of each label among the columns."""
    if sorted(columns) != sorted(labels):
        other = sorted(set(columns) ^ set(labels))[:3] or columns[:3]
        raise UsageError(f"{path} has other labels than the network, such as {', '.join(other)}")
    return [columns.index(label) for label in labels]


def _find_rows(path: Path, names: list[str], images: Labelled) -> Indices:
    """The position of each name among the images."""
    relative = (Path(os.path.relpath(one, images.root)).as_posix() for one in images.paths)
    paths = (unicodedata.normalize("NFC", one) for one in relative)
    positions = {one: row for row, one in enumerate(paths)}
    unknown = [name for name in names if name not in positions]
    if unknown or len(set(names)) < len(names):
        raise UsageError(
            f"{path} names {unknown[0]}, which is no image in {images.root}: expected paths such as "
            f"{next(iter(positions))}"
            if unknown
            else f"{path} names an image twice: expected each once"
        )
    return np.array([positions[name] for name in names], np.int64)
