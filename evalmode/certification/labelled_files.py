"""Which images have which label: by folders that are named like labels, or by a table of files and labels."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalmode.errors import DataError, UsageError
from evalmode.images.file_index import FileIndex
from evalmode.images.folders import (
    describe_nested,
    describe_unread,
    find_images,
    list_folder,
    name_some,
    separate_images,
)
from evalmode.images.label_tables import Row, describe_rows, read_table

SPLITS = ("test", "val", "train")  # of a table with splits, the images of the first one that it has are listed


@dataclass(frozen=True, eq=False)
class LabelledFiles:
    """Images and their labels.

    Attributes:
        root: The folder that names of images are relative to: the folder of the labels, or that of the table.
        paths: N files, sorted by label and path.
        targets: The index of each image's label, N numbers.
        warnings: A sentence for each kind of file or row that is left out.
    """

    root: Path
    paths: list[Path]
    targets: list[int]
    warnings: tuple[str, ...] = ()


def list_labelled(source: Path, labels: Sequence[str]) -> LabelledFiles:
    """List the images of a folder ``<label>/<image>``, or those that a table of files and labels names.

    Args:
        source: The folder, with any number of folders in between, or the table, see ``read_table``. Of a table with
            splits, the images of the first one of ``SPLITS`` are listed.
        labels: The labels, in the order of the network's outputs.

    Raises:
        DataError: The table is damaged, names no images, or does not fit the labels.
        UsageError: A folder is not named like a label or cannot be read, or there is no image.
    """
    # In Unicode's normal form C: macOS names folders in form D.
    targets_of = {unicodedata.normalize("NFC", label): target for target, label in enumerate(labels)}
    return _list_rows(source, labels, targets_of) if source.is_file() else _list_folders(source, labels, targets_of)


def _list_folders(folder: Path, labels: Sequence[str], targets_of: dict[str, int]) -> LabelledFiles:
    folders, beside = list_folder(folder)
    found_targets = [targets_of.get(unicodedata.normalize("NFC", path.name), -1) for path in folders]
    unknown = [path.name for path, target in zip(folders, found_targets, strict=True) if target < 0]
    if unknown:
        alike = [label for label in labels if label.rpartition(" (")[0] in unknown]  # labels that got their index
        shown = list(dict.fromkeys((*alike, *labels)))
        hint = _suggest_split(folders, set(targets_of)) if len(unknown) == len(folders) else ""
        raise UsageError(
            f"{folder} holds folders that are not named like a label: {', '.join(unknown[:5])}; "
            f"labels: {_list_labels(shown)}{hint}"
        )
    outside = separate_images(beside)
    paths: list[Path] = []
    targets: list[int] = []
    others = list(outside.others)
    for target, path in sorted(zip(found_targets, folders, strict=True)):
        found = find_images(path)
        others += found.others
        paths += found.images
        targets += [target] * len(found.images)
    warnings = describe_unread(others, outside.images)
    if not paths:
        missing = f"{folder} holds no <label>/<image> of {_list_labels(labels)}"
        remedy = "put each image into a folder named by its label, or give a table of files and labels"
        raise UsageError("; ".join(filter(None, (missing, *warnings, remedy if outside.images else ""))))
    return LabelledFiles(folder, paths, targets, (*warnings, *describe_nested(paths, folders)))


def _suggest_split(folders: Sequence[Path], labels: set[str]) -> str:
    """Suggest one of the folders that hold folders named like labels: not that of training, if there is another."""
    splits = [
        path
        for path in folders
        if (inner := {unicodedata.normalize("NFC", one.name) for one in list_folder(path)[0]}) and inner <= labels
    ]
    if not splits:
        return ""
    return f"; give one split, such as {min(splits, key=lambda path: (path.name.startswith('train'), path))}"


def _list_rows(table: Path, labels: Sequence[str], targets_of: dict[str, int]) -> LabelledFiles:
    every = read_table(table).rows
    split = next((name for name in SPLITS if any(row.split == name for row in every)), None)
    rows = [row for row in every if row.split == split]
    labelled = [row for row in rows if row.label]
    if unknown := list(dict.fromkeys(row.label for row in labelled if row.label not in targets_of)):
        raise DataError(
            f"{table} has labels that the network does not have: {', '.join(unknown[:5])}; labels: "
            f"{_list_labels(labels)}"
        )
    targets: dict[Path, int] = {}
    repeated = []
    for row, path in zip(labelled, _find_files(table, labelled), strict=True):
        target = targets_of[row.label]
        if path not in targets:
            targets[path] = target
        elif targets[path] == target:
            repeated.append(row.describe())
        else:
            raise DataError(f"{path} has two labels, the second one in {table}, line {row.line}: an image has one")
    if not targets:
        raise DataError(f"{table} has no row with a file and a label")
    ordered = sorted(targets.items(), key=lambda item: (item[1], item[0]))
    chosen = f"the images are those of the split {split} in {table}: {len(rows)} of {len(every)} rows"
    left_out = {"have no label": [row.describe() for row in rows if not row.label], "repeat another row": repeated}
    return LabelledFiles(
        table.parent,
        paths=[path for path, _ in ordered],
        targets=[target for _, target in ordered],
        warnings=(
            *([chosen] if split else []),
            *(describe_rows(shown, str(table), what) for what, shown in left_out.items() if shown),
        ),
    )


def _find_files(table: Path, rows: Sequence[Row]) -> list[Path]:
    """Find the image of each row by its path, or else as training does.

    Raises:
        DataError: Rows name no image, or one that several files may be.
    """
    index: FileIndex | None = None  # of the images below the folder of the table; listed only if needed
    paths = []
    missing = []
    for row in rows:
        path = table.parent / row.file.replace("\\", "/")
        if path.is_file():
            paths.append(path)
            continue
        index = index or FileIndex(table.parent, find_images(table.parent).images)
        if found := index.find(row.file, table, row.line):
            paths.append(found)
        else:
            missing.append(row.describe())
    if missing:
        raise DataError(
            f"{len(missing)} of {len(rows)} rows of {table} name no image: {name_some(missing)}: correct the table, "
            f"whose paths are relative to {table.parent}"
        )
    return paths


def _list_labels(labels: Sequence[str]) -> str:
    return ", ".join(labels[:5]) + ", ..." * (len(labels) > 5)
