"""The server's log on standard error: one line per event, whatever text a client has sent.

A thread writes the records, so that logging never blocks, even if standard error is a pipe that is not read.

With ``json``, standard error holds JSON objects only: other output (C libraries, tracebacks) is converted to records.
"""

from __future__ import annotations

import atexit
import copy
import logging
import os
import re
import sys
import threading
import warnings
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from typing import Any, TextIO

from evalmode.errors import ThreadsUnavailable
from serving.threads import start_threads

log = logging.getLogger(__name__)

QUEUED_RECORDS = 10_000  # further records are dropped
FLUSH_S = 0.5  # how long the process waits at exit for queued records to be written
MAX_CHARACTERS = 1000  # of a message, and of each additional field of a record
MAX_LINE_BYTES = 64 * 1024  # of standard error; a longer line is split into several records
# The beginning of a log line of abseil (grpc) or onnxruntime.
_LEVEL = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d|.*?\[([VIWEF]):onnxruntime")
_LEVELS = {
    "V": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
}
_STANDARD_FIELDS = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
# grpcio logs metadata that is not UTF-8 in full, including tokens, on a thread that must not block.
_SILENCED = ("grpc._cython.cygrpc", "grpc._common")


def set_up_log(level: str, form: str, worker: int = 0) -> None:
    """Configure the logging of the process: records go to standard error, and so do warnings and uncaught exceptions.

    Args:
        level: The lowest level that is logged, such as "info".
        form: "text" or "json".
        worker: The number of the worker that this process is, for every record; 0 if it is none.

    Raises:
        ThreadsUnavailable: The system cannot start the threads that write.
    """
    origin = f"worker {worker}: " if worker else ""
    formatter, stream = logging.Formatter(f"%(asctime)s %(levelname)s {origin}%(message)s"), sys.stderr
    if form == "json":
        from pythonjsonlogger.json import JsonFormatter

        fields = {"worker": worker} if worker else {}
        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        formatter = JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names, static_fields=fields
        )
        _captured.append(_Captured())
        stream = _captured[-1].stream
    logging.basicConfig(level=level.upper(), handlers=[QueuedHandler(stream, formatter)])
    logging.getLogger("PIL").setLevel(logging.INFO)  # at debug level it logs every PNG in a certificate
    for name in _SILENCED:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.showwarning = _log_warning
    sys.excepthook = lambda kind, error, trace: _log_uncaught("the server", error)
    threading.excepthook = lambda args: _log_uncaught(f"thread {args.thread and args.thread.name}", args.exc_value)
    sys.unraisablehook = lambda args: _log_uncaught(f"{args.err_msg or 'ignored in'} {args.object!r}", args.exc_value)
    atexit.register(shut_down_log)


def find_stream() -> int:
    """The file descriptor that the log is written to, for a process that writes records, too."""
    return _captured[-1].stream.fileno() if _captured else 2


def shut_down_log() -> None:
    """Write the queued records, waiting at most ``FLUSH_S`` seconds for each handler."""
    while _captured:
        _captured.pop().end()
    for handler in logging.getLogger().handlers:  # logging.shutdown could block on standard error
        handler.flush()


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """See ``warnings.showwarning``."""
    logging.getLogger("py.warnings").warning("%s: %s (%s:%s)", category.__name__, message, filename, lineno)


def _log_uncaught(where: str, error: BaseException | None) -> None:
    if not isinstance(error, SystemExit):
        log.critical("uncaught in %s: %r", where, error, exc_info=error)


class _Captured:
    """Converts output to standard error to log records. Output during a crash of the process is lost.

    Attributes:
        stream: The original standard error, for the log itself.
    """

    def __init__(self) -> None:
        self.stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        self._reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        self._ended = threading.Event()
        start_threads(1, "stderr", self._read)

    def end(self) -> None:
        """Log the output so far, and restore standard error."""
        with suppress(Exception):
            sys.stderr.flush()
        os.dup2(self.stream.fileno(), 2)  # nothing writes to the pipe any more
        self._ended.wait(FLUSH_S)

    def _read(self) -> None:
        with os.fdopen(self._reader, "rb") as pipe:
            while line := pipe.readline(MAX_LINE_BYTES):
                if text := line.decode(errors="backslashreplace").strip():
                    found = _LEVEL.match(text)
                    level = _LEVELS[found[1] or found[2]] if found else logging.WARNING
                    logging.getLogger("stderr").log(level, "%s", text)
        self._ended.set()


_captured: list[_Captured] = []


class QueuedHandler(QueueHandler):
    """Passes records to a thread that writes them. Beyond ``QUEUED_RECORDS``, records are dropped and counted.

    Args:
        stream: The stream that lines are written to.
        formatter: Makes the lines.

    Raises:
        ThreadsUnavailable: The system cannot start the thread.
    """

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        self._records: Queue[Any] = Queue(QUEUED_RECORDS)
        super().__init__(self._records)
        self._writer = _Writer(self._records, stream, formatter)
        try:
            self._writer.start()
        except RuntimeError as error:
            raise ThreadsUnavailable(
                f"the log needs a thread and none could be started ({error}): raise the limit on processes or memory"
            ) from error

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Make a copy of a record that is safe to write, and whose exception is text: frames keep requests alive."""
        record = copy.copy(record)
        make_harmless(record)
        if record.exc_info:
            text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_text, record.exc_info = "\n".join(map(escape, text.split("\n"))), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a record, or drop it if the queue is full."""
        try:
            self._records.put_nowait(record)
        except Full:
            self._writer.count_dropped()

    def flush(self) -> None:
        """Wait until the queued records are written, at most ``FLUSH_S`` seconds. ``logging.shutdown`` calls it."""
        with self._records.all_tasks_done:
            self._records.all_tasks_done.wait_for(lambda: not self._records.unfinished_tasks, FLUSH_S)


class _Writer(QueueListener):
    """The thread that writes records. A handler would hold its lock while it writes and block ``logging.shutdown``."""

    def __init__(self, records: Queue[Any], stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__(records)
        self._records = records
        self._stream = stream
        self._formatter = formatter
        self._lock = threading.Lock()
        self._dropped = 0
        self._ahead = 0  # records to write before the number of dropped records is reported

    def count_dropped(self) -> None:
        with self._lock:
            if not self._dropped:
                self._ahead = QUEUED_RECORDS + 1  # the queued records, and the one that is being written
            self._dropped += 1

    def handle(self, record: logging.LogRecord) -> None:
        """Write a record, and the number of records that were dropped after it."""
        self._write(record)
        with self._lock:
            self._ahead -= 1
            if not self._dropped or (self._ahead > 0 and not self._records.empty()):
                return
            dropped, self._dropped = self._dropped, 0
        message = "%s log records were dropped: they arrived faster than they could be written"
        self._write(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (dropped,), None))

    def _write(self, record: logging.LogRecord) -> None:
        try:
            self._stream.write(self._formatter.format(record) + "\n")
            self._stream.flush()
        except Exception as error:  # the thread continues: standard error may become writable again
            message = "a log record could not be written: %s"
            failed = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, (escape(repr(error)),), None)
            with suppress(Exception):
                self._stream.write(self._formatter.format(failed) + "\n")


def make_harmless(record: logging.LogRecord) -> None:
    """Escape and truncate the message and the additional fields of a record."""
    record.msg, record.args = escape(record.getMessage()), ()
    for name, value in vars(record).items():
        if name not in _STANDARD_FIELDS and isinstance(value, str):
            setattr(record, name, escape(value))


def escape(text: str) -> str:
    """Return at most ``MAX_CHARACTERS`` of a text, with characters that are not printable escaped."""
    cut = text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cut)
