"""The server's log: one line an event on stderr, whatever a caller has put into it.

Whoever logs never waits for stderr, which may be a pipe that nobody reads: a thread writes what is logged.

A log of JSON holds nothing else: what others write to standard error (libraries in C, tracebacks) becomes records.
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

QUEUED_RECORDS = 10_000  # beyond it records are dropped
FLUSH_S = 0.5  # that the end of the process waits for what is queued, at most
MAX_CHARACTERS = 1000  # of a message, and of each of a record's own fields
MAX_LINE_BYTES = 64 * 1024  # of standard error; what is longer is more than one record
# What abseil (grpc) and onnxruntime begin their lines with.
_LEVEL = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d|.*?\[([VIWEF]):onnxruntime")
_LEVELS = {
    "V": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
}
_OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
# grpcio logs metadata that is not UTF-8 whole, tokens included, on the thread that must not wait for a log.
_TOO_TALKATIVE = ("grpc._cython.cygrpc", "grpc._common")


def set_up_log(level: str, form: str) -> None:
    """Log to stderr, as text or as JSON objects; what Python would write there is logged, too.

    Args:
        level: The least level that is logged, such as "info".
        form: "text" or "json".

    Raises:
        ThreadsUnavailable: The system does not start the threads that write.
    """
    formatter, stream = logging.Formatter("%(asctime)s %(levelname)s %(message)s"), sys.stderr
    if form == "json":
        from pythonjsonlogger.json import JsonFormatter

        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        formatter = JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names)
        _captured.append(_Captured())
        stream = _captured[-1].stream
    logging.basicConfig(level=level.upper(), handlers=[QueuedHandler(stream, formatter)])
    logging.getLogger("PIL").setLevel(logging.INFO)  # else every PNG in a certificate has its say
    for name in _TOO_TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.showwarning = _log_warning
    sys.excepthook = lambda kind, error, trace: _log_uncaught("the server", error)
    threading.excepthook = lambda told: _log_uncaught(f"thread {told.thread and told.thread.name}", told.exc_value)
    sys.unraisablehook = lambda told: _log_uncaught(f"{told.err_msg or 'ignored in'} {told.object!r}", told.exc_value)
    atexit.register(shut_down_log)


def shut_down_log() -> None:
    """Write what was logged, as far as standard error takes it in time."""
    while _captured:
        _captured.pop().end()
    for handler in logging.getLogger().handlers:  # logging.shutdown would also wait for standard error itself
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
    """Logs what anybody writes to standard error; what the process writes while it crashes is lost.

    Attributes:
        stream: Where standard error went, for the log itself.
    """

    def __init__(self) -> None:
        self.stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        self._reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        self._ended = threading.Event()
        start_threads(1, "stderr", self._read)

    def end(self) -> None:
        """Log what was written so far, and let what follows go where it went."""
        with suppress(Exception):
            sys.stderr.flush()
        os.dup2(self.stream.fileno(), 2)  # nobody writes to the pipe now
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
    """Hands records to a thread that writes them as lines; one beyond ``QUEUED_RECORDS`` is dropped, and counted.

    Args:
        stream: Where lines are written.
        formatter: Makes them.

    Raises:
        ThreadsUnavailable: The system does not start the thread.
    """

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        self._records: Queue[Any] = Queue(QUEUED_RECORDS)
        super().__init__(self._records)
        self.addFilter(make_harmless)
        self._writer = _Writer(self._records, stream, formatter)
        try:
            self._writer.start()
        except RuntimeError as error:
            raise ThreadsUnavailable(
                f"the log needs a thread and none could be started ({error}): raise the limit on processes or memory"
            ) from error

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record as it waits: without the frames of its exception, which hold requests."""
        if not record.exc_info:
            return record
        text = record.exc_text or logging.Formatter().formatException(record.exc_info)
        record = copy.copy(record)
        record.exc_text, record.exc_info = text, None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Hand a record over, or drop it."""
        try:
            self._records.put_nowait(record)
        except Full:
            self._writer.count_dropped()

    def flush(self) -> None:
        """Wait until what was logged is written, but at most ``FLUSH_S``: ``logging.shutdown`` calls it."""
        with self._records.all_tasks_done:
            self._records.all_tasks_done.wait_for(lambda: not self._records.unfinished_tasks, FLUSH_S)


class _Writer(QueueListener):
    """The thread that writes. No handler does: ``logging.shutdown`` would wait for its lock while it writes."""

    def __init__(self, records: Queue[Any], stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__(records)
        self._records = records
        self._stream = stream
        self._formatter = formatter
        self._lock = threading.Lock()
        self._dropped = 0
        self._ahead = 0  # records to write before the next line that says how many were dropped

    def count_dropped(self) -> None:
        with self._lock:
            if not self._dropped:
                self._ahead = QUEUED_RECORDS + 1  # those that wait, and the one that is being written
            self._dropped += 1

    def handle(self, record: logging.LogRecord) -> None:
        """Write a record; where records are missing after it, write how many."""
        self._write(record)
        with self._lock:
            self._ahead -= 1
            if not self._dropped or (self._ahead > 0 and not self._records.empty()):
                return
            dropped, self._dropped = self._dropped, 0
        message = "%s lines of the log were dropped: they came faster than they could be written"
        self._write(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (dropped,), None))

    def _write(self, record: logging.LogRecord) -> None:
        try:
            self._stream.write(self._formatter.format(record) + "\n")
            self._stream.flush()
        except Exception as error:  # the thread goes on: stderr may be read again
            message = "a line of the log could not be written: %s"
            failed = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, (escape(repr(error)),), None)
            with suppress(Exception):
                self._stream.write(self._formatter.format(failed) + "\n")


def make_harmless(record: logging.LogRecord) -> bool:
    """Escape what is not printable in a record, and cut what is long: a filter that lets every record through."""
    record.msg, record.args = escape(record.getMessage()), ()
    for name, value in vars(record).items():
        if name not in _OWN and isinstance(value, str):
            setattr(record, name, escape(value))
    return True


def escape(text: str) -> str:
    """A text in one line, at most ``MAX_CHARACTERS`` of it."""
    cut = text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cut)
