"""Which files of a folder are images: one rule for every command that reads folders.

A file is an image by its suffix. Folders are read with all folders in them, whatever their names; links are followed.
Hidden files and folders are skipped, as are those that file systems and viewers leave behind. Whatever else is found is
counted and named, never dropped in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalmode.errors import UsageError
from evalmode.limits import IMAGE_SUFFIXES

# Left behind by macOS' archiver, Synology's indexer, Windows, and fsck.
LEFT_BEHIND = ("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "lost+found")
NAMED = 5  # files that are named; the rest is counted


@dataclass(frozen=True)
class Found:
    """What a folder holds, however deep, in the order of the paths.

    Attributes:
        images: Files that are images by their suffix.
        others: All other files that are not hidden.
    """

    images: tuple[Path, ...]
    others: tuple[Path, ...]


def find_images(folder: Path) -> Found:
    """Find the images of a folder and of the folders in it.

    Raises:
        UsageError: A folder cannot be read.
    """
    return tell_images(_walk(folder))


def tell_images(files: Iterable[Path]) -> Found:
    """Tell images from other files by their suffixes."""
    images: list[Path] = []
    others: list[Path] = []
    for path in files:
        (images if path.suffix.lower() in IMAGE_SUFFIXES and not _is_special(path) else others).append(path)
    return Found(tuple(sorted(images)), tuple(sorted(others)))


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files that lie directly in a folder, sorted, without those that are hidden.

    Raises:
        UsageError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            seen = [(Path(entry.path), entry.is_dir()) for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from error
    return sorted(path for path, is_dir in seen if is_dir), sorted(path for path, is_dir in seen if not is_dir)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is skipped by all alike."""
    return name.startswith(".") or name.casefold() in LEFT_BEHIND


def describe_unread(others: Sequence[Path], outside: Sequence[Path] = ()) -> tuple[str, ...]:
    """Sentences that count and name what is not read.

    Args:
        others: Files that are no images.
        outside: Images that lie in no folder of a label.
    """
    sentences = []
    if others:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        what = "1 file that is not an image" if len(others) == 1 else f"{len(others)} files that are not images"
        sentences.append(f"left out {what} (images end in {suffixes}): {name_some(others)}")
    if outside:
        images = f"{len(outside)} image{'s' * (len(outside) > 1)}"
        sentences.append(f"left out {images} outside of the labels' folders: {name_some(outside)}")
    return tuple(sentences)


def describe_nested(images: Sequence[Path], label_folders: Sequence[Path]) -> tuple[str, ...]:
    """A sentence that counts and names the folders in the folders of labels; none where there are none.

    Args:
        images: All that are read, with a label each.
        label_folders: The folders of the labels; an image that lies deeper has the label of its outermost folder.
    """
    direct = set(label_folders)
    nested = [image for image in images if image.parent not in direct]
    if not nested:
        return ()
    lie = "1 image lies" if len(nested) == 1 else f"{len(nested)} images lie"
    folders = sorted({image.parent for image in nested})
    return (
        f"{lie} in folders inside a label's folder, and {'has' if len(nested) == 1 else 'have'} that label: "
        f"{name_some(folders)}",
    )


def name_some(paths: Sequence[Path]) -> str:
    """The first five, and how many more there are."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(map(str, paths[:NAMED])) + more


def _walk(folder: Path) -> Iterator[Path]:
    """Every file that is not hidden; a folder that a link leads back to is not read again below itself."""
    waiting = [(folder, frozenset({_identify(folder)}))]
    while waiting:
        folder, above = waiting.pop()
        folders, files = list_folder(folder)
        yield from files
        for below in folders:
            identity = _identify(below)
            if identity not in above:
                waiting.append((below, above | {identity}))


def _identify(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _is_special(path: Path) -> bool:
    """Whether a path is a pipe, a socket or a device; a link that leads nowhere is none: reading it says why."""
    return os.path.exists(path) and not os.path.isfile(path)  # noqa: PTH110, PTH113  False where Path's raise
