"""Labels in a file beside the network: one a line, or Keras' ``class_indices`` as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evalmode.certification.found.facts import Fact, make_fact
from evalmode.certification.found.place import Place
from evalmode.certification.found.values import read_bytes, read_json, to_labels
from evalmode.errors import UsageError
from evalmode.images.label_files import parse_labels

LINES = ("labels.txt", "classes.txt", "class_names.txt")
INDICES = "class_indices.json"  # the attribute of Keras' flow_from_directory, as many scripts save it


def read_label_files(place: Place) -> Iterator[Fact]:
    """Read the label files of a place."""
    for path in (folder / name for folder in place.folders for name in LINES):
        content = read_bytes(path)
        if content is not None:
            try:
                yield Fact("labels", parse_labels(content, str(path)), str(path))
            except UsageError as error:
                yield Fact("labels", None, str(path), str(error))
    for path in (folder / INDICES for folder in place.folders):
        indices = read_json(path)
        if indices is not None:
            yield make_fact("labels", indices, str(path), _invert)


def _invert(indices: dict[str, Any]) -> tuple[str, ...]:
    """Convert indices by name to labels."""
    if not all(type(index) is int for index in indices.values()) or len(set(indices.values())) < len(indices):
        raise ValueError("expected an index for each name, each once")
    return to_labels({index: name for name, index in indices.items()})
