"""The server's log: one line an event on stderr, whatever a caller has put into it.

Whoever logs never waits for stderr, which may be a pipe that nobody reads: a thread writes what is logged.
"""

from __future__ import annotations

import copy
import logging
import sys
import threading
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from typing import Any, TextIO

from serving.errors import ThreadsUnavailable

QUEUED_RECORDS = 10_000  # beyond it records are dropped
FLUSH_S = 0.5  # that the end of the process waits for what is queued, at most
MAX_CHARACTERS = 1000  # of a message, and of each of a record's own fields
_OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
# grpcio logs metadata that is not UTF-8 whole, tokens included, on the thread that must not wait for a log.
_TOO_TALKATIVE = ("grpc._cython.cygrpc", "grpc._common")


def set_up_log(level: str, form: str) -> None:
    """Log to stderr, as text or as JSON objects.

    Args:
        level: The least level that is logged, such as "info".
        form: "text" or "json".

    Raises:
        ThreadsUnavailable: The system does not start the thread that writes.
    """
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    if form == "json":
        from pythonjsonlogger.json import JsonFormatter

        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        formatter = JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names)
    handler = QueuedHandler(sys.stderr, formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("PIL").setLevel(logging.INFO)  # else every PNG in a certificate has its say
    for name in _TOO_TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)


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
            with suppress(Exception):
                self._stream.write(f"a line of the log could not be written: {error!r}\n")


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
