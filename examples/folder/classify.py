"""Classify every photo below a folder, and write a table: python classify.py MODEL FOLDER > answers.csv.

MODEL is a file or a folder, such as models/pets for its newest version. A file that is not an image gets a line in the
table, too, and the exit code is 1. Needs the extra serve.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evalmode

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def classify(model: evalmode.Model, path: Path) -> list[object]:
    """One row: the photo, its best two labels with their probabilities, and what is wrong with the file."""
    try:
        scores = model.predict(path, top_k=2).scores
    except (evalmode.EvalmodeError, OSError) as error:
        return [path, "", "", "", "", error]
    return [path, *(value for score in scores for value in (score.label, f"{score.probability:.4f}")), ""]


def classify_folder(model: evalmode.Model, folder: Path) -> Iterator[list[object]]:
    """The rows of a folder, in the order of the names. Threads decode and compute at the same time."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    with ThreadPoolExecutor() as threads:
        yield from threads.map(lambda path: classify(model, path), paths)


def main() -> int:
    """Write the table."""
    table = csv.writer(sys.stdout)
    table.writerow(["path", "label", "probability", "second_label", "second_probability", "error"])
    failed = 0
    for row in classify_folder(evalmode.load(sys.argv[1]), Path(sys.argv[2])):
        table.writerow(row)
        failed += bool(row[-1])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
