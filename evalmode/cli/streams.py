"""Standard output and standard error that may be full, closed, or unable to encode some characters."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

STDOUT = "standard output"
_ANY_TEXT = "evalmode.any-text"  # the name of an error handler in the registry of codecs


class StandardOutput(io.FileIO):
    """Standard output whose errors name it, which those of the operating system do not.

    After the reader has closed the pipe, as ``head`` does, further output is discarded: the work and its exit code do
    not depend on the reader.

    Attributes:
        failed: Whether something could not be written.
    """

    failed = False

    def write(self, data: object) -> int:
        """Write bytes, as many as possible.

        Returns:
            The number of bytes written.

        Raises:
            OSError: They cannot be written; its file name is "standard output".
        """
        try:
            return super().write(data)  # type: ignore[arg-type]
        except (BrokenPipeError, ConnectionResetError):  # a pipe, or a socket
            discard_output()
            return memoryview(data).nbytes  # type: ignore[arg-type]
        except OSError as error:
            error.filename, self.failed = STDOUT, True
            raise


class _StandardError(io.FileIO):
    """Standard error that ignores errors, since they cannot be reported anywhere."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def open_streams() -> StandardOutput:
    """Replace standard output and standard error by streams that accept any text.

    File descriptors 0 to 2 that are closed are opened on ``/dev/null``. Otherwise the next file to be opened would get
    their number, and the messages that libraries print.

    Returns:
        Standard output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    codecs.register_error(_ANY_TEXT, _encode_any)
    output = StandardOutput(1, "w", closefd=False)
    sys.stdout, sys.stderr = _wrap(output, sys.stdout), _wrap(_StandardError(2, "w", closefd=False), sys.stderr)
    return output


def discard_output() -> None:
    """Discard what is written to standard output from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _wrap(raw: io.FileIO, old: TextIO | None) -> TextIO:
    """A text stream with the encoding and buffering of an old one."""
    kept = old if isinstance(old, io.TextIOWrapper) else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=kept.encoding if kept else "utf-8",
        errors=_ANY_TEXT,
        line_buffering=kept is None or kept.line_buffering or kept.write_through,  # write_through ends at the buffer
        write_through=kept is not None and kept.write_through,
    )


def _encode_any(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode undecodable bytes of file names as those bytes, and other characters as escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
