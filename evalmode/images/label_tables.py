"""Reads tables of files and labels: CSV as Kaggle and spreadsheets write it, and Hugging Face's ``metadata.jsonl``."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from evalmode.errors import DataError
from evalmode.images.folders import SPLIT_NAMES, name_some
from evalmode.images.formats import IMAGE_SUFFIXES

# The usual names of columns in lower case, with _ for spaces; the first one that a table has is used.
FILE_COLUMNS = (
    *("file", "file_name", "filename", "file_path", "filepath", "filepaths", "path"),
    *("image", "image_file", "image_name", "image_path", "image_id", "img", "photo", "id_code", "id"),
)
LABEL_COLUMNS = (
    *("label", "labels", "label_name", "class", "class_name", "classes", "category", "category_name"),
    *("species", "breed", "target", "diagnosis", "dx"),
)
SPLIT_COLUMNS = ("split", "subset", "partition", "set", "data_set", "dataset")
DELIMITERS = (",", ";", "\t")
MAX_SHOWN = 10  # columns that an error names


class TableUnusable(DataError):
    """A table holds no files or no labels."""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        line: Its line in the file, from 1.
        file: The name or path of the file, as written.
        label: The label; "" if there is none.
        split: ``train``, ``val`` or ``test``; None if the table has no splits.
    """

    line: int
    file: str
    label: str
    split: str | None

    def describe(self) -> str:
        """Return the line and the file of the row, for sentences that name rows."""
        return f"line {self.line} ({self.file})"


@dataclass(frozen=True)
class Table:
    """A table of files and labels.

    Attributes:
        path: The file of the table.
        rows: Its rows.
        label_column: The name of the column of labels; "" if the columns have no names.
        is_usual: Whether labels usually have a column of this name.
    """

    path: Path
    rows: tuple[Row, ...]
    label_column: str
    is_usual: bool


def read_table(path: Path) -> Table:
    """Read a table.

    The first line of a CSV holds the names of the columns, unless it starts with the name of an image: then the columns
    are file, label, and optionally split. If no column has a usual name of labels, the only other one is taken.

    Args:
        path: A CSV with commas, semicolons or tabs, in UTF-8 or UTF-16; or a ``.jsonl`` with one object a line.

    Raises:
        TableUnusable: The table has no column of files or labels.
        DataError: The file cannot be read, or is not such a table.
    """
    try:
        text = _decode(path.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    lines = _parse_jsonl(text, path) if path.suffix.lower() == ".jsonl" else _parse_csv(text, path)
    if not lines or not lines[0][1]:
        raise DataError(f"{path} is empty: a line for each file is needed, with columns file and label")
    (_, first), *rest = lines
    if Path(str(first[0])).suffix.lower() in IMAGE_SUFFIXES:
        names, rest = [*("file", "label", "subset")[: len(first)], *[""] * (len(first) - 3)], lines
    else:
        names = [_simplify(cell) for cell in first]
    file, label, split = _find_columns(names, [cells for _, cells in rest], path)
    rows = []
    for line, cells in rest:
        cell = {column: _read_cell(cells, column, f"{path}, line {line}") for column in (file, label, split)}
        rows.append(Row(line, cell[file], cell[label], _read_split(cell[split], f"{path}, line {line}", split)))
    named = names[label] if rest is not lines else ""
    return Table(path, tuple(rows), named, rest is lines or named in LABEL_COLUMNS)


def describe_rows(rows: Sequence[str], tables: str, what: str) -> str:
    """Describe the rows that are left out, in a sentence.

    Args:
        rows: The rows, such as "line 3 (cat.jpg)".
        tables: The names of the tables.
        what: What is wrong with the rows, such as "have no label".
    """
    count = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
    return f"left out {count} of {tables} that {what}: {name_some(rows)}"


def _decode(content: bytes, path: Path) -> str:
    """Decode text in UTF-8, or in UTF-16 with a byte order mark."""
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line} is not {encoding.removesuffix('-sig')}: expected a table of files and labels in UTF-8"
        ) from error


def _parse_csv(text: str, path: Path) -> list[tuple[int, list[Any]]]:
    """Return the cells of every row that is not empty, with its last line; the first line decides the delimiter."""
    start = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=start.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}") from error


def _parse_jsonl(text: str, path: Path) -> list[tuple[int, list[Any]]]:
    """Return the names that any object has, then the values of every object in that order."""
    objects: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            objects.append((number, dict(json.loads(line).items())))
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not a JSON object") from error
    names = list(dict.fromkeys(name for _, facts in objects for name in facts))
    return [(1, names), *((number, [facts.get(name) for name in names]) for number, facts in objects)]


def _simplify(name: Any) -> str:
    """Return the name of a column in lower case, with _ for spaces."""
    return re.sub(r"[\s_-]+", "_", str(name).strip().casefold())


def _find_columns(names: Sequence[str], rows: Sequence[Sequence[Any]], path: Path) -> tuple[int, int, int | None]:
    """Find the columns of files, labels and splits; the last is None if there is none."""
    file = next((names.index(name) for name in FILE_COLUMNS if name in names), None)
    if file is None:
        raise TableUnusable(f"{path} has no column named file: {_show(names)}. Name the columns file and label")
    split = next((names.index(name) for name in SPLIT_COLUMNS if _holds_splits(name, names, rows)), None)
    label = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
    if label is None:
        others = [column for column, name in enumerate(names) if column not in (file, split) and _is_named(name)]
        if len(others) != 1:
            raise TableUnusable(
                f"{path} has no column named label: {_show(names)}. Name the column of the labels label"
            )
        (label,) = others
    return file, label, split


def _holds_splits(name: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> bool:
    """Return whether a column holds splits: the one named split does, others only if all of their values are."""
    if name not in names:
        return False
    column = names.index(name)
    return name == "split" or all(
        str(cells[column]).strip().casefold() in SPLIT_NAMES for cells in rows if column < len(cells)
    )


def _is_named(name: str) -> bool:
    """Return whether a column has a name; pandas writes the index of its rows without one."""
    return bool(name) and not name.startswith("unnamed:")


def _show(names: Sequence[str]) -> str:
    """Return the columns of a table in words."""
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return f"its first line is {', '.join(names[:MAX_SHOWN])}{more}"


def _read_cell(cells: Sequence[Any], column: int | None, place: str) -> str:
    """Return a cell as text: "" if the column is None or the value is missing."""
    if column is None:
        return ""
    if column >= len(cells):
        raise DataError(f"{place} has {len(cells)} columns, at least {column + 1} are needed")
    value = cells[column]
    if value is not None and not isinstance(value, str | int | float):
        raise DataError(f"{place}: a text or a number is needed, it holds a {type(value).__name__}")
    return "" if value is None else normalize("NFC", str(value).strip())


def _read_split(cell: str, place: str, column: int | None) -> str | None:
    """Return the split that a cell names."""
    if column is None:
        return None
    split = SPLIT_NAMES.get(cell.casefold())
    if split is None:
        raise DataError(f"{place}: the split {cell!r} is unknown: write train, val or test")
    return split
