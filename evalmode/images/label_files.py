"""Label files: text files with one label per line."""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path

from evalmode.errors import UsageError


def read_labels(path: Path) -> tuple[str, ...]:
    """Read the labels of a file.

    Raises:
        UsageError: The file cannot be read, or ``parse_labels`` refuses it.
    """
    try:
        return parse_labels(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def parse_labels(content: bytes, source: str) -> tuple[str, ...]:
    """Parse labels, one per line. Empty lines are skipped.

    Args:
        content: Text in UTF-8, or in UTF-16 with a byte order mark.
        source: The name of the file in error messages.

    Returns:
        The labels in the order of the lines, in Unicode's normal form C.

    Raises:
        UsageError: The content is not such text, has fewer than two labels, or has a label twice.
    """
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        quoted = content.splitlines()[number - 1][:40]
        raise UsageError(
            f"{source}, line {number}: {quoted!r} is not {encoding.removesuffix('-sig')}: save the file as UTF-8"
        ) from error
    lines: dict[str, int] = {}
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        label = unicodedata.normalize("NFC", line.strip())
        if label in lines:
            raise UsageError(
                f"{source} names {label!r} on lines {lines[label]} and {number}: each label once, one a line"
            )
        if label:
            lines[label] = number
    if len(lines) < 2:
        raise UsageError(f"{source} names {len(lines)} labels, one a line: at least 2 are needed")
    return tuple(lines)
