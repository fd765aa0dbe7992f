"""Standard output and standard error: full, closed, or of an encoding that lacks a letter, as they may be."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

STDOUT = "standard output"
_ANY_TEXT = "evalmode.any-text"  # a way to encode, by codecs' registry


class StandardOutput(io.FileIO):
    """Says which file could not be written, which the operating system does not.

    Once the reader went away, as ``head`` does, what is written goes nowhere: the work and its exit code do not depend
    on who reads.

    Attributes:
        failed: whether something could not be written.
    """

    failed = False

    def write(self, data: object) -> int:
        """Write bytes, as many as can be.

        Raises:
            OSError: they cannot be written; names standard output.
        """
        try:
            return super().write(data)  # type: ignore[arg-type]
        except (BrokenPipeError, ConnectionResetError):  # of a pipe, of a socket
            discard_output()
            return memoryview(data).nbytes  # type: ignore[arg-type]
        except OSError as error:
            error.filename, self.failed = STDOUT, True
            raise


class _Complaints(io.FileIO):
    """Goes on where nobody can be told that nothing can be said."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def open_streams() -> StandardOutput:
    """Make standard output and standard error take any text, and name themselves in errors.

    A file descriptor that was closed leads to ``/dev/null``: else the next file that is opened would get its number,
    and what a library prints.

    Returns:
        Standard output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    codecs.register_error(_ANY_TEXT, _encode_any)
    output = StandardOutput(1, "w", closefd=False)
    sys.stdout, sys.stderr = _wrap(output, sys.stdout), _wrap(_Complaints(2, "w", closefd=False), sys.stderr)
    return output


def discard_output() -> None:
    """Send what is still to be written to standard output nowhere: it cannot be written."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _wrap(raw: io.FileIO, old: TextIO | None) -> TextIO:
    kept = old if isinstance(old, io.TextIOWrapper) else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=kept.encoding if kept else "utf-8",
        errors=_ANY_TEXT,
        line_buffering=kept is None or kept.line_buffering or kept.write_through,  # through the buffer, too
        write_through=kept is not None and kept.write_through,
    )


def _encode_any(error: UnicodeError) -> tuple[str | bytes, int]:
    """A file's name that is not of this encoding as the bytes it is; other signs as escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
