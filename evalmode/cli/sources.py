"""The images that ``evalmode predict`` classifies: files, those of folders, and standard input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import click

from evalmode.errors import ImageTooLarge, UsageError
from evalmode.images.folders import describe_unread, find_images

STDIN = Path("-")


@dataclass(frozen=True)
class Source:
    """An image to classify.

    Attributes:
        path: The file; ``-`` is standard input.
        root: The folder that the user named, or the folder of the file.
    """

    path: Path
    root: Path

    def find_label(self, labels: tuple[str, ...]) -> str | None:
        """The label of the image by its folders, as training reads them.

        Args:
            labels: The labels of the model.

        Returns:
            The name of the outermost folder below the root that is named like a label, or of the root; None if there
            is no such folder.
        """
        known = {normalize("NFC", label): label for label in labels}
        below = self.path.parent.relative_to(self.root).parts
        names = (normalize("NFC", name) for name in (*below, self.root.name))
        return next((known[name] for name in names if name in known), None)


def find_sources(paths: Iterable[str], suffixes: Sequence[str]) -> Iterator[Source]:
    """Find the images to classify.

    Args:
        paths: Files, folders, or ``-`` for standard input.
        suffixes: The suffixes of images in folders, such as ".jpg".

    Raises:
        UsageError: A folder holds no image.
    """
    for name in paths:
        path = Path(name)
        if name == "-":
            yield Source(STDIN, STDIN.parent)
        elif not path.is_dir():  # a pipe may be
            path = path if path != STDIN else path.absolute()
            yield Source(path, path.parent)
        else:
            found = find_images(path, suffixes)
            unread = describe_unread(found.others, suffixes=suffixes)
            if not found.images:
                raise UsageError(f"{path} holds no image: {unread[0] if unread else ', '.join(suffixes)}")
            for sentence in unread:
                click.echo(f"evalmode: {sentence}", err=True)
            yield from (Source(image, path) for image in found.images)


def read_image(path: Path, max_bytes: int) -> bytes:
    """Read a file, or standard input, to its end.

    Args:
        path: The file; ``-`` is standard input.
        max_bytes: The size of the largest image that is read.

    Raises:
        ImageTooLarge: It holds more than ``max_bytes``.
        OSError: It cannot be read.
    """
    # File descriptor 0, since sys.stdin is None if it was closed at the start.
    with open(0, "rb", closefd=False) if path == STDIN else path.open("rb") as file:
        image = file.read(max_bytes + 1)
    if len(image) > max_bytes:
        raise ImageTooLarge(
            f"image is more than {max_bytes} bytes, the limit: send a smaller one, or raise --max-image-bytes",
            limit_bytes=max_bytes,
        )
    return image
