"""Ultralytics' metadata in the ONNX file: each value is a Python literal as text.

Source: https://github.com/ultralytics/ultralytics, ultralytics/engine/exporter.py (the metadata) and
ultralytics/data/augment.py, classify_transforms (the preprocessing, which the metadata does not state). If the size is
square, the shorter side is resized and the centre cropped; otherwise the whole image is resized.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from evalmode.certification.found.facts import Fact, make_fact
from evalmode.certification.found.labels import make_labels
from evalmode.certification.found.values import to_channels, to_side
from evalmode.errors import UsageError

MAX_TEXT = 2**20  # characters of one value
OTHER_RESIZE = "8.0."  # versions that cropped before they resized, by OpenCV without antialiasing


def read_ultralytics(keys: Mapping[str, str]) -> Iterator[Fact]:
    """Read the metadata of an ONNX file.

    Args:
        keys: The metadata by key.

    Returns:
        The facts; none if Ultralytics did not write the file.

    Raises:
        UsageError: The network is not a classifier.
    """
    if "names" not in keys or "task" not in keys:
        return
    if keys["task"] != "classify":
        raise UsageError(f"the metadata 'task' of the file is {keys['task'][:40]!r}: expected classify, a classifier")
    yield make_labels(keys["names"], "metadata 'names' of the file", _parse)
    size: Any = None
    if "imgsz" in keys:
        fact = make_fact("size", keys["imgsz"], "metadata 'imgsz' of the file", _to_size)
        yield fact
        size = fact.value
    if "channels" in keys:
        source = "metadata 'channels' of the file"
        yield make_fact("channels", keys["channels"], source, lambda text: to_channels(_parse(text)))
    source = "metadata 'task' of the file, by Ultralytics' classify_transforms"
    yield Fact("scale", (0.0, 1.0), source)
    yield Fact("mean", (0.0,), source)
    yield Fact("std", (1.0,), source)
    if keys.get("version", "").startswith(OTHER_RESIZE):
        problem = f"version {keys['version'][:20]} of Ultralytics resizes in a way that is not supported"
        yield Fact("resize", None, source, problem)
        return
    yield Fact("resize", "squash" if size and size[0] != size[1] else "crop", source)
    yield Fact("crop_ratio", 1.0, source)
    yield Fact("interpolation", "bilinear", source)
    yield Fact("crop_offset", "rounded", source)


def _to_size(text: str) -> tuple[int, int]:
    value = _parse(text)
    sides = [value, value] if isinstance(value, int) else value
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise ValueError("expected height and width")
    return to_side(sides[0]), to_side(sides[1])


def _parse(text: str) -> Any:
    """Parse a Python literal, without executing anything."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"expected at most {MAX_TEXT:,} characters")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("expected a Python literal") from error
