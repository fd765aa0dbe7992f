"""Finds the images of a folder by what a table calls them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from evalmode.errors import DataError


class FileIndex:
    """The images of a folder by path and by name, each with and without suffix.

    Args:
        root: The folder.
        images: The images in it.
    """

    def __init__(self, root: Path, images: Sequence[Path]) -> None:
        self._root = root
        self._by_path: dict[str, list[Path]] = defaultdict(list)
        self._by_path_without_suffix: dict[str, list[Path]] = defaultdict(list)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_name_without_suffix: dict[str, list[Path]] = defaultdict(list)
        for path in images:
            inside = PurePosixPath(normalize("NFC", path.relative_to(root).as_posix()))
            self._by_path[str(inside)].append(path)
            self._by_path_without_suffix[str(inside.with_suffix(""))].append(path)
            self._by_name[inside.name].append(path)
            self._by_name_without_suffix[inside.stem].append(path)

    def find(self, written: str, table: Path, line: int) -> Path | None:
        """Find the image that a row of a table names.

        Args:
            written: Its path relative to the folder of the table or to the folder of the images, or its name if no
                other image has it; with or without suffix.
            table: The table.
            line: The line of the row.

        Returns:
            The image; None if there is none.

        Raises:
            DataError: Several images have this name.
        """
        plain = normalize("NFC", written.replace("\\", "/"))
        from_table = os.path.relpath(table.absolute().parent / plain, self._root.absolute())
        paths = [normalize("NFC", Path(from_table).as_posix()), PurePosixPath(plain).as_posix()]
        names = [] if "/" in plain else [plain]  # never by its name alone if it has a folder, which may be another one
        for index, keys in (
            (self._by_path, paths),
            (self._by_path_without_suffix, paths),
            (self._by_name, names),
            (self._by_name_without_suffix, names),
        ):
            for key in keys:
                if key not in index:
                    continue
                if len(index[key]) > 1:
                    some = " or ".join(map(str, index[key][:3]))
                    raise DataError(f"{table}, line {line}: {written} may be {some}: write its path")
                return index[key][0]
        return None
