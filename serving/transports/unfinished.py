"""Accounting of received bytes: which of them are part of an unfinished message, and which belong to no call.

The kernel counts the bytes that a connection has received, and the transport reports the messages that it delivered and
the calls that it has. The remaining bytes are unfinished, or stray if there is no call.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

CALL_BYTES = 2048  # what a call may receive in addition to its message: headers and frames
REFUSED_BYTES = 65_536 + CALL_BYTES  # what a call that is refused before its message may receive: the first window
# Stray bytes belong to no call, such as headers that never end.
STRAY_BYTES_PER_BYTE_SENT = 500  # up to here the server has answered calls that it did not report
MAX_STRAY_BYTES = 2**16  # of a connection
CERTAIN_STRAY_BYTES = 2**20  # with nothing sent, this much is no call: the server grants windows as it reads


@dataclass
class Seen:
    """The state of a connection at the last sweep.

    Attributes:
        received: The bytes received.
        unfinished: Those of them that are not a whole message yet.
        sent: The bytes that the transport had sent when the first of the stray ones arrived.
        stray: The stray bytes since the last sweep that found a call.
        asked: Whether they were stray already when the server was last asked to answer a health check.
        confirmed: Whether it has answered since, and they were still stray.
        closing: Whether the connection has to be closed because of them.
    """

    received: int
    unfinished: int
    sent: int
    stray: int = 0
    asked: bool = False
    confirmed: bool = False
    closing: bool = False


@dataclass(frozen=True)
class Report:
    """What the transport reports for one sweep, by the names of connections.

    Attributes:
        delivered: Bytes of the messages delivered since the last sweep.
        refused: The number of calls refused since the last sweep.
        with_calls: Connections that had a call before or after the bytes were counted, or shortly before.
        waiting: The bytes that messages still to arrive may hold; None if the transport does not know all calls.
        knows_calls: Whether the transport knows which connections have calls.
        answered: Whether the health check was answered.
        asking: Whether a health check is on its way.
    """

    delivered: Mapping[str, int]
    refused: Mapping[str, int]
    with_calls: tuple[Container[str], ...]
    waiting: Mapping[str, int] | None
    knows_calls: bool
    answered: bool
    asking: bool


def compare(before: Seen, name: str, counted: tuple[int, int], report: Report) -> Seen:
    """The state of a connection from its state at the last sweep.

    Args:
        before: That state.
        name: The name of the connection.
        counted: The bytes received and the bytes sent, in total.
        report: What the transport reports.
    """
    received, sent = counted
    finished = report.delivered.get(name, 0) + report.refused.get(name, 0) * REFUSED_BYTES
    unfinished = before.unfinished + received - before.received - finished
    if report.waiting is not None:  # grpc discards the rest of a message that is too large
        unfinished = min(unfinished, report.waiting.get(name, 0))
    seen = Seen(received, max(0, unfinished), sent)
    if not report.knows_calls or finished or any(name in calls for calls in report.with_calls):
        return seen
    stray = max(0, before.stray + received - before.received - CALL_BYTES)
    sent_before, asked, confirmed = sent, False, False
    if before.stray:
        sent_before, asked, confirmed = before.sent, before.asked, before.confirmed
    # grpc answers calls that ended before the server could report them, but not headers that never end.
    if (sent - sent_before) * STRAY_BYTES_PER_BYTE_SENT > stray:
        return seen
    seen.stray, seen.sent = stray, sent_before
    # When the health check is answered, answers to stray bytes may still be on their way: they get one more sweep.
    seen.closing = stray > CERTAIN_STRAY_BYTES or (stray > MAX_STRAY_BYTES and confirmed)
    seen.confirmed = confirmed or (asked and report.answered)
    seen.asked = asked and report.asking
    return seen


def deduct(seen: Mapping[str, Seen], unknown: int) -> None:
    """Deduct messages whose connection is unknown from all connections, in proportion to their unfinished bytes.

    Args:
        seen: The state of each connection by name, which is changed.
        unknown: The bytes of these messages.
    """
    total = sum(one.unfinished for one in seen.values())
    if total and unknown:
        for one in seen.values():
            one.unfinished = int(one.unfinished * max(0.0, 1 - unknown / total))
