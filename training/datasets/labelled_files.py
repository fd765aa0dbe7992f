"""Which files of a folder are the images of which split and label, according to a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evalmode.errors import DataError
from evalmode.images.file_index import FileIndex
from evalmode.images.folders import SPLIT_NAMES, describe_unread, find_images, list_folder, name_some
from evalmode.images.label_tables import Row, Table, TableUnusable, describe_rows, read_table
from training.datasets.dataset import SPLITS, ReadOptions
from training.datasets.idx import is_idx_folder
from training.datasets.layout import Layout, find_layout

METADATA = ("metadata.csv", "metadata.jsonl")  # the names of tables that Hugging Face's imagefolder finds


@dataclass(frozen=True, eq=False)
class _Entry:
    """A row with the file that it names."""

    table: Path
    row: Row
    file: Path

    @property
    def place(self) -> str:
        """Where the row is."""
        return f"{self.table}, line {self.row.line}"


def is_image_folder(source: str, options: ReadOptions) -> bool:
    """Return whether a data set is a folder of images.

    Args:
        source: The path or name of the data set.
        options: How images are read.

    Raises:
        DataError: It is not, and there is a table of labels.
    """
    path = Path(source)
    if path.is_dir() and not is_idx_folder(path):
        return True
    if options.labels is not None:
        raise DataError(f"--labels {options.labels} is for folders of images, and {source} is none: omit it")
    return False


def list_images(root: Path, options: ReadOptions) -> Layout:
    """List the images of a folder by split and label.

    The labels are those of ``options.labels``; else those of ``metadata.csv`` or ``metadata.jsonl`` in the folder or in
    the folders of its splits; else the names of folders.

    Args:
        root: The folder.
        options: How images are read.

    Returns:
        Labels, images, and warnings about every file that is not read.

    Raises:
        DataError: The table does not fit the folder; or there is none, and the folder has no folders of labels or an
            ambiguous layout.
        UsageError: A folder cannot be read.
    """
    if options.labels is not None:
        return _Matcher(root, [read_table(options.labels)], options.skip_unreadable).arrange()
    paths = _find_metadata(root)
    if not paths:
        return find_layout(root)
    try:
        matcher = _Matcher(root, [read_table(path) for path in paths], options.skip_unreadable)
        matcher.check_metadata()
    except TableUnusable as unusable:
        try:
            layout = find_layout(root)
        except DataError as error:
            raise DataError(f"{error}; {unusable}") from error
        return replace(layout, warnings=(f"the labels are the names of folders: {unusable}", *layout.warnings))
    layout = matcher.arrange()
    return replace(layout, warnings=(f"the labels are those of {name_some(paths)}", *layout.warnings))


def _find_metadata(root: Path) -> list[Path]:
    """Find the tables of a folder, or else those of the folders of its splits."""
    folders, files = list_folder(root)
    found = [path for path in files if path.name in METADATA]
    if not found:
        splits = [folder for folder in folders if folder.name.casefold() in SPLIT_NAMES]
        found = [path for folder in splits for path in list_folder(folder)[1] if path.name in METADATA]
    for path in found:
        if path.with_suffix(".csv") in found and path.suffix == ".jsonl":
            raise DataError(f"{path.parent} holds {' and '.join(METADATA)}: remove one of them")
    return found


class _Matcher:
    """Finds the file of every row.

    Args:
        root: The folder of the images.
        tables: The tables.
        skip: Whether rows that name no file are left out, instead of raising an error.
    """

    def __init__(self, root: Path, tables: Sequence[Table], skip: bool) -> None:
        self._root = root
        self._tables = tables
        self._skip = skip
        self._found = find_images(root)
        self._missing: list[str] = []
        self._unlabelled: list[str] = []
        index = FileIndex(root, self._found.images)
        self._entries = [entry for table in tables for entry in self._match(table, index)]

    def check_metadata(self) -> None:
        """Check that tables which were found by their name hold labels.

        Raises:
            TableUnusable: No row names an image. Or a column without a usual name of labels holds text, and the images
                are in several folders, whose names may be the labels.
        """
        if not self._entries:
            raise TableUnusable(f"no row of {self._name_tables()} names an image and its label")
        for table in self._tables:
            folders = {entry.file.parent for entry in self._entries if entry.table == table.path}
            if not table.is_usual and folders != {table.path.parent}:
                raise TableUnusable(f"{table.path} has no column named label, only {table.label_column}")

    def arrange(self) -> Layout:
        """Arrange the images by split and label.

        Returns:
            Labels in the order of their names, or of their values if all are numbers; and the images of each label in
            the order of their paths.

        Raises:
            DataError: Rows name no image, a file has several labels or splits, or there are no training images.
        """
        self._check_missing()
        chosen, repeated = self._choose_entries()
        splits = self._find_splits(chosen)
        train = {entry.row.label for entry, split in zip(chosen, splits, strict=True) if split == "train"}
        labels = tuple(sorted(train, key=(lambda label: (int(label), label)) if all(map(_is_whole, train)) else None))
        for entry, split in zip(chosen, splits, strict=True):
            if entry.row.label not in train:
                raise DataError(
                    f"{entry.place}: no training image has the label {entry.row.label!r} of this {split} image"
                )
        targets = {label: target for target, label in enumerate(labels)}
        listed: dict[str, list[tuple[int, Path]]] = {name: [] for name in SPLITS if name in splits}
        for entry, split in zip(chosen, splits, strict=True):
            listed[split].append((targets[entry.row.label], entry.file))
        files = {
            name: ([path for _, path in sorted(pairs)], np.array([target for target, _ in sorted(pairs)], np.int64))
            for name, pairs in listed.items()
        }
        return Layout(labels, files, self._describe(chosen, repeated))

    def _match(self, table: Table, index: FileIndex) -> Iterator[_Entry]:
        """Yield the rows of a table that have a label and a file, and record the others."""
        for row in table.rows:
            file = index.find(row.file, table.path, row.line)
            shown = row.describe() if len(self._tables) == 1 else f"{table.path}, line {row.line}"
            if not row.label:
                self._unlabelled.append(shown)
            elif file is None:
                self._missing.append(shown)
            else:
                yield _Entry(table.path, row, file)

    def _check_missing(self) -> None:
        """Raise ``DataError`` if rows name no file and are not to be left out, or if none names one."""
        total = sum(len(table.rows) for table in self._tables)
        if self._missing and not (self._skip and self._entries):
            todo = "repair the table, or leave the rows out with --skip-unreadable"
            raise DataError(
                f"{len(self._missing)} of {total} rows of {self._name_tables()} name no image in {self._root}: "
                f"{name_some(self._missing)}: {todo}"
            )
        if not self._entries:
            raise DataError(f"{self._name_tables()} has no row with a file and a label")

    def _choose_entries(self) -> tuple[list[_Entry], list[_Entry]]:
        """Return one row for each file, and the rows that repeat another one."""
        first: dict[Path, _Entry] = {}
        repeated: list[_Entry] = []
        for entry in self._entries:
            other = first.setdefault(entry.file, entry)
            if other is entry:
                continue
            if (other.row.label, other.row.split) != (entry.row.label, entry.row.split):
                what = "labels" if other.row.label != entry.row.label else "splits"
                raise DataError(
                    f"{entry.file} has two {what}, in {other.place} and in line {entry.row.line}: an image has one"
                )
            repeated.append(entry)
        return list(first.values()), repeated

    def _find_splits(self, entries: Sequence[_Entry]) -> list[str]:
        """Return the split of every row: that of the table, else that of the folder if all are in folders of splits."""
        tops = [entry.file.relative_to(self._root).parts[0].casefold() for entry in entries]
        by_folder = [SPLIT_NAMES.get(top, "") for top in tops]
        if not all(by_folder) or "train" not in by_folder:
            by_folder = ["train"] * len(entries)
        splits = [entry.row.split or split for entry, split in zip(entries, by_folder, strict=True)]
        if "train" not in splits:
            raise DataError(f"{self._name_tables()} has no training images: write train in the column split")
        return splits

    def _describe(self, chosen: Sequence[_Entry], repeated: Sequence[_Entry]) -> tuple[str, ...]:
        """Describe everything that is left out."""
        used = {entry.file for entry in chosen}
        unnamed = [path for path in self._found.images if path not in used]
        tables = {table.path.absolute() for table in self._tables}
        sentences = list(describe_unread([path for path in self._found.others if path.absolute() not in tables]))
        if unnamed:
            images = "1 image that has" if len(unnamed) == 1 else f"{len(unnamed)} images that have"
            sentences.append(f"left out {images} no label in {self._name_tables()}: {name_some(unnamed)}")
        for rows, what in (
            (self._missing, "name no image"),
            (self._unlabelled, "have no label"),
            ([entry.row.describe() for entry in repeated], "repeat another row"),
        ):
            if rows:
                sentences.append(describe_rows(rows, self._name_tables(), what))
        return tuple(sentences)

    def _name_tables(self) -> str:
        return " and ".join(str(table.path) for table in self._tables)


def _is_whole(label: str) -> bool:
    """Return whether a label is a whole number."""
    return label.isascii() and label.isdecimal()
