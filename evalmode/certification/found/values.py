"""Small files of metadata, and the values in them. Every value is checked before it is used."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

from evalmode.errors import UsageError
from evalmode.images.headers import MAX_SIDE

MAX_METADATA_BYTES = 8 * 1024 * 1024  # of one file; labels of 21,841 classes take one or two


def read_bytes(path: Path) -> bytes | None:
    """Read a file of metadata.

    Args:
        path: The file.

    Returns:
        Its content; None if there is no such file.

    Raises:
        UsageError: The file is larger than ``MAX_METADATA_BYTES``, or cannot be read.
    """
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_METADATA_BYTES:
        raise UsageError(f"{path} is larger than {MAX_METADATA_BYTES:,} bytes, too large for metadata: remove it")
    return content


def read_text(path: Path) -> str | None:
    """Read a text file of metadata.

    Args:
        path: The file.

    Returns:
        Its text; None if there is no such file.

    Raises:
        UsageError: The file cannot be read, see ``read_bytes``, or is not UTF-8.
    """
    content = read_bytes(path)
    if content is None:
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}: correct it, or remove it") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object of a file.

    Args:
        path: The file.

    Returns:
        The object; None if there is no such file.

    Raises:
        UsageError: The file cannot be read, or is not a JSON object.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {str(error)[:80]}: correct it, or remove it") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds {repr(value)[:40]}: expected a JSON object; correct it, or remove it")
    return value


def to_names(value: Any) -> tuple[str, ...]:
    """Convert a list of names, or names by index from 0, to a tuple.

    Raises:
        ValueError: It is something else, or holds fewer than two names.
    """
    if isinstance(value, dict):
        try:
            numbered = {int(key): name for key, name in value.items()}
        except (TypeError, ValueError):
            raise ValueError("expected names by index from 0") from None
        missing = next((index for index in range(len(numbered)) if index not in numbered), None)
        if missing is not None or len(numbered) != len(value):
            raise ValueError(f"expected names by index from 0, each once; {missing} is missing")
        value = [numbered[index] for index in range(len(numbered))]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name.strip() for name in value):
        raise ValueError("expected names of labels, or names by index from 0")
    if len(value) < 2:
        raise ValueError(f"it names {len(value)} labels: at least 2 are needed")
    return tuple(unicodedata.normalize("NFC", name.strip()) for name in value)


def to_labels(value: Any) -> tuple[str, ...]:
    """Convert a list of names, or names by index from 0, to labels.

    Raises:
        ValueError: It is something else, holds fewer than two labels, or one label twice.
    """
    labels = to_names(value)
    first: dict[str, int] = {}
    for index, label in enumerate(labels):
        if first.setdefault(label, index) != index:
            raise ValueError(f"{label!r} is the name of {first[label]} and of {index}: each label once")
    return labels


def to_numbers(value: Any) -> tuple[float, ...]:
    """Convert a number, or one for each channel, to a tuple.

    Raises:
        ValueError: It is something else, or not finite.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) not in (1, 3) or not all(map(_is_number, values)):
        raise ValueError("expected one finite number, or one for each of 3 channels")
    return tuple(float(one) for one in values)


def to_spread(value: Any) -> tuple[float, ...]:
    """Convert standard deviations to a tuple.

    Raises:
        ValueError: It is something else than numbers above 0.
    """
    numbers = to_numbers(value)
    if min(numbers) <= 0:
        raise ValueError("expected numbers above 0")
    return numbers


def to_ratio(value: Any) -> float:
    """Convert a share above 0 and at most 1.

    Raises:
        ValueError: It is something else.
    """
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError("expected a number above 0 and at most 1")
    return float(value)


def to_side(value: Any) -> int:
    """Convert the length of a side in pixels.

    Raises:
        ValueError: It is something else.
    """
    if type(value) is not int or not 1 <= value <= MAX_SIDE:
        raise ValueError(f"expected a side of 1 to {MAX_SIDE} pixels")
    return value


def to_channels(value: Any) -> int:
    """Convert the number of channels.

    Raises:
        ValueError: It is neither 1 nor 3.
    """
    if type(value) is not int or value not in (1, 3):
        raise ValueError("expected 1 (grey) or 3 (colour) channels")
    return value


def to_flag(value: Any) -> bool:
    """Convert true or false.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _is_number(value: Any) -> bool:
    """Whether a value is a number that float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
