"""Files: read again when they change, written whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

Signature = tuple[int, ...]


def sign_file(path: Path) -> Signature:
    """What tells one state of a file from another: which it is, its length, when it was written; () if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say in every ``OSError`` which file it is of: that of a full disk names none, that of a partial file another."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file, whole and on the disk, or not at all.

    Args:
        path: of the file; where a link leads to, and a device or a pipe, is written to and stays what it is. What
            standard output or standard error is, is written after what was printed. A pipe's reader may leave early.
        content: bytes, or text that is written as UTF-8.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    encoded = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    place = Path(os.path.realpath(path))
    with naming(path):
        if _is_stream(path):
            with suppress(BrokenPipeError), _open_stream(path) as stream:
                stream.write(encoded)
            return
        partial = place.with_name(place.name + ".partial")
        try:
            with partial.open("wb") as file:
                file.write(encoded)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _find_standard(path: Path) -> int | None:
    """Which of standard output and standard error a path leads to, be it a file that they were redirected to."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return None


def _is_stream(path: Path) -> bool:
    """Whether a path leads to what cannot be replaced: a device, a pipe, standard output, standard error."""
    return _find_standard(path) is not None or (path.exists() and not path.is_file())


def _open_stream(path: Path) -> IO[bytes]:
    """Open what cannot be replaced; a file that was opened already is written where its other writers are."""
    number = _find_standard(path)
    if number is None:
        return path.open("wb")
    (sys.stdout if number == 1 else sys.stderr).flush()
    return os.fdopen(os.dup(number), "wb")


def check_replaceable(path: Path) -> None:
    """Find out early whether ``write_atomically`` can write a file.

    Raises:
        OSError: it cannot; names the file, or the folder that it is to lie in.
    """
    if not _is_stream(path):
        check_writable(Path(os.path.realpath(path)).parent)
    elif _find_standard(path) is None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def check_writable(folder: Path) -> None:
    """Find out early whether files can be written into a folder: what is to lie there may take long to make.

    Raises:
        OSError: they cannot, or it is no folder; names the folder.
    """
    with naming(folder), TemporaryFile(dir=folder) as file:
        file.write(b"0")
        file.flush()


def find_existing(folder: Path) -> Path:
    """A folder, or the first above it that is there: it is where the missing ones would be made."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
