"""The server's log: one line an event on stderr, whatever a caller has put into it."""

from __future__ import annotations

import logging
import sys

MAX_CHARACTERS = 1000  # of a message, and of each of a record's own fields
_OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
# grpcio logs metadata that is not UTF-8 whole, tokens included, on the thread that must not wait for a log.
_TOO_TALKATIVE = ("grpc._cython.cygrpc", "grpc._common")


def set_up_log(level: str, form: str) -> None:
    """Log to stderr, as text or as JSON objects.

    Args:
        level: The least level that is logged, such as "info".
        form: "text" or "json".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(make_harmless)
    if form == "json":
        from pythonjsonlogger.json import JsonFormatter

        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("PIL").setLevel(logging.INFO)  # else every PNG in a certificate has its say
    for name in _TOO_TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)


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
