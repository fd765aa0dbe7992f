"""Finding images in folders: one rule for every command that reads folders.

A file is an image if its suffix says so. Folders are read recursively, and links are followed. Hidden files and folders
are skipped, as are those that file systems and viewers leave behind. All other files are counted and named, so that no
file is skipped silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalmode.errors import UsageError
from evalmode.images.formats import IMAGE_SUFFIXES

# Left behind by macOS' archiver, Synology's indexer, Windows, and fsck.
LEFT_BEHIND = ("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "lost+found")
SPLIT_NAMES = {  # the usual names of split folders, in lower case -> the split
    **dict.fromkeys(("train", "training", "trainset", "train_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "valset", "val_set", "validation_set"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "test_set"), "test"),
}
MAX_NAMED = 5  # files or rows that a sentence names; it counts the rest


@dataclass(frozen=True)
class Found:
    """The files in a folder, at any depth, sorted by path.

    Attributes:
        images: Files that are images according to their suffix.
        others: All other files that are not hidden.
    """

    images: tuple[Path, ...]
    others: tuple[Path, ...]


def find_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Found:
    """Find the images in a folder, recursively.

    Args:
        folder: The folder.
        suffixes: The suffixes of images, lower case.

    Raises:
        UsageError: A folder cannot be read.
    """
    return separate_images(_walk(folder), suffixes)


def separate_images(files: Iterable[Path], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Found:
    """Separate images from other files by their suffixes.

    Args:
        files: The files.
        suffixes: The suffixes of images, lower case.
    """
    images: list[Path] = []
    others: list[Path] = []
    for path in files:
        (images if path.suffix.lower() in suffixes and not _is_special(path) else others).append(path)
    return Found(tuple(sorted(images)), tuple(sorted(others)))


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files directly in a folder, sorted, without hidden ones.

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
    """Return whether files and folders of a name are skipped."""
    return name.startswith(".") or name.casefold() in LEFT_BEHIND


def describe_unread(
    others: Sequence[Path], outside: Sequence[Path] = (), suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> tuple[str, ...]:
    """Describe the files that are not read, in sentences.

    Args:
        others: Files that are not images.
        outside: Images that are not in the folder of a label.
        suffixes: The suffixes of images.

    Returns:
        A sentence for each kind of file, if there are any.
    """
    sentences = []
    if others:
        what = "1 file that is not an image" if len(others) == 1 else f"{len(others)} files that are not images"
        sentences.append(f"left out {what} (images end in {', '.join(suffixes)}): {name_some(others)}")
    if outside:
        images = f"{len(outside)} image{'s' * (len(outside) > 1)}"
        sentences.append(f"left out {images} outside of the labels' folders: {name_some(outside)}")
    return tuple(sentences)


def describe_nested(images: Sequence[Path], label_folders: Sequence[Path]) -> tuple[str, ...]:
    """Describe the images that are in folders inside the folder of a label.

    Args:
        images: All images that are read.
        label_folders: The folders of the labels. An image in a folder inside one of these has its label.

    Returns:
        One sentence, or none if there are no such images.
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


def name_some(things: Sequence[Path | str]) -> str:
    """Name the first five of several paths or rows, and count the rest."""
    more = f" and {len(things) - MAX_NAMED} more" if len(things) > MAX_NAMED else ""
    return ", ".join(map(str, things[:MAX_NAMED])) + more


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file that is not hidden. A link to a folder that contains it is not followed."""
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
    """Return whether a path is a pipe, a socket or a device. A broken link is not: reading it raises the reason."""
    return os.path.exists(path) and not os.path.isfile(path)  # noqa: PTH110, PTH113  Path's methods raise instead
