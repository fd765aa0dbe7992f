"""Files: detect that they changed, and write them atomically."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

Signature = tuple[int, ...]  # device, inode, size in bytes, time of modification in ns; () if the file is missing


def sign_file(path: Path) -> Signature:
    """Return a signature of a file that changes when the file is replaced or written.

    Args:
        path: The file; links are followed.

    Returns:
        The signature; () if the file cannot be read.
    """
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Set the file name of every ``OSError`` raised inside the block.

    Errors of a full disk name no file, and errors of a temporary file name that file.

    Args:
        path: The file to name.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_synced(path: Path, content: bytes) -> None:
    """Write a file, and return once its content is on the disk.

    Args:
        path: The file; its content is replaced.
        content: The bytes.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: its content is synced to disk, then renamed into place.

    Links are followed. Devices and pipes are written to directly; a pipe whose reader has closed it is not an error. If
    the path is standard output or standard error, the content follows what was already printed.

    Args:
        path: The file to write.
        content: Bytes, or text that is encoded as UTF-8.

    Raises:
        OSError: The file cannot be written; the error names ``path``.
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
            write_synced(partial, encoded)
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _find_standard(path: Path) -> int | None:
    """Return the descriptor of standard output or standard error if a path leads to it, also by a redirection."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return None


def _is_stream(path: Path) -> bool:
    """Return whether a path cannot be replaced: a device, a pipe, standard output or standard error."""
    return _find_standard(path) is not None or (path.exists() and not path.is_file())


def _open_stream(path: Path) -> IO[bytes]:
    """Open a path that cannot be replaced; a standard stream is continued at its current position."""
    number = _find_standard(path)
    if number is None:
        return path.open("wb")
    (sys.stdout if number == 1 else sys.stderr).flush()
    return os.fdopen(os.dup(number), "wb")


def check_replaceable(path: Path) -> None:
    """Check that ``write_atomically`` will be able to write a file.

    Args:
        path: The file; it may be missing.

    Raises:
        OSError: It cannot be written; the error names the file or its folder.
    """
    if not _is_stream(path):
        check_writable(Path(os.path.realpath(path)).parent)
    elif _find_standard(path) is None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def check_writable(folder: Path) -> None:
    """Check that a folder is writable, before files for it are made at length.

    Args:
        folder: An existing folder.

    Raises:
        OSError: The folder is not writable, or is not a folder; the error names it.
    """
    with naming(folder), TemporaryFile(dir=folder) as file:
        file.write(b"0")
        file.flush()


def find_existing(folder: Path) -> Path:
    """Return a folder if it exists, else the innermost parent that exists, in which it would be created."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
