"""A channel between two processes: each side sends requests and answers those of the other.

A frame is a header of fixed size, a JSON object, and bytes. Both processes run the same code as the same user.
"""

from __future__ import annotations

import itertools
import json
import logging
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias

from evalmode import errors
from evalmode.errors import EvalmodeError, RequestError
from serving.threads import start_threads

log = logging.getLogger(__name__)

SEND_S = 30  # for the other side to take what is sent; its reading thread does nothing else
_FRAME = struct.Struct("!IQ")  # bytes of the JSON object, bytes after it
_TIMEOUT = struct.Struct("@ll")  # struct timeval

Message: TypeAlias = dict[str, Any]
Answer: TypeAlias = Callable[[str, Message, bytes], tuple[Message, bytes]]


class ChannelClosed(Exception):
    """The other process has ended, or does not read."""


class ChannelLate(Exception):
    """The other process has not answered in time."""


class Channel:
    """Sends requests over a connected socket, and answers those that arrive, each in a thread of its own.

    Args:
        connection: The socket, which the channel closes.
        answer: Answers a request: its kind, its JSON object, its bytes. An ``EvalmodeError`` is raised again at the
            side that asked; any other error is logged, and raised there as a ``RuntimeError``.

    Attributes:
        closed: Set once the other side has closed the socket, or has sent what is not a frame, which is logged.
    """

    def __init__(self, connection: socket.socket, answer: Answer) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEOUT.pack(SEND_S, 0))
        self._connection = connection
        self._answer = answer
        self._ids = itertools.count()
        self._sending = threading.Lock()
        self._changing = threading.Lock()  # guards the following attribute
        self._open: dict[int, Future[tuple[Message, bytes]]] = {}
        self.closed = threading.Event()

    def start(self) -> None:
        """Receive, in a thread.

        Raises:
            ThreadsUnavailable: The system cannot start the thread.
        """
        start_threads(1, "channel", self._receive)

    def ask(
        self, kind: str, message: Message | None = None, data: bytes = b"", timeout_s: float | None = None
    ) -> tuple[Message, bytes]:
        """Send a request, and wait for its answer.

        Args:
            kind: What is asked for.
            message: The JSON object of the request.
            data: The bytes of the request.
            timeout_s: Seconds to wait; None: no limit.

        Returns:
            The JSON object and the bytes of the answer.

        Raises:
            ChannelClosed: The other process has ended, or ends before it answers.
            ChannelLate: There is no answer in time.
            EvalmodeError: The other side answers with this error.
        """
        future: Future[tuple[Message, bytes]] = Future()
        number = next(self._ids)
        with self._changing:
            if self.closed.is_set():
                raise ChannelClosed
            self._open[number] = future
        try:
            self._send({"ask": number, "kind": kind, "message": message or {}}, data)
            return future.result(timeout_s)
        except TimeoutError:
            raise ChannelLate(f"no answer to {kind} within {timeout_s} s") from None
        finally:
            with self._changing:
                self._open.pop(number, None)

    def close(self) -> None:
        """Close the socket: requests in progress fail on both sides."""
        with suppress(OSError):  # it may be closed already
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self, header: Message, data: bytes) -> None:
        content = json.dumps(header).encode()
        try:
            with self._sending:
                for part in (_FRAME.pack(len(content), len(data)), content, data):
                    self._connection.sendall(part)
        except OSError as error:  # a part may have been sent: nothing can follow it
            self.close()
            raise ChannelClosed from error

    def _receive(self) -> None:
        """Receive until the other side closes the socket, or sends what is not a frame."""
        try:
            while True:
                self._take_frame()
        except OSError:
            pass
        except Exception:
            log.exception("the channel is closed: what it received cannot be read")
        with self._changing:
            self.closed.set()
            left, self._open = self._open, {}
        for future in left.values():
            if not future.done():
                future.set_exception(ChannelClosed())
        self._connection.close()

    def _take_frame(self) -> None:
        """Receive a frame: let a thread answer a request, or complete a request with its answer."""
        size, data_size = _FRAME.unpack(self._read(_FRAME.size))
        header, data = json.loads(self._read(size)), self._read(data_size)
        if "ask" in header:
            try:
                threading.Thread(target=self._reply, args=(header, data), name="answer", daemon=True).start()
            except RuntimeError as error:  # the system starts no more threads
                with suppress(ChannelClosed):
                    self._send({"answer": header["ask"], "fault": repr(error)}, b"")
            return
        with self._changing:
            future = self._open.get(header["answer"])
        if future is not None:
            _resolve(future, header, data)

    def _read(self, size: int) -> bytes:
        """Read a number of bytes.

        Raises:
            ConnectionResetError: The other side has closed the socket.
        """
        parts, missing = [], size
        while missing:
            part = self._connection.recv(min(missing, 2**20))
            if not part:
                raise ConnectionResetError
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _reply(self, header: Message, data: bytes) -> None:
        answer: Message = {"answer": header["ask"]}
        content = b""
        try:
            answer["message"], content = self._answer(header["kind"], header["message"], data)
        except EvalmodeError as error:
            answer["error"] = {"name": type(error).__name__, "text": str(error), "facts": error.facts}
            if isinstance(error, RequestError):
                answer["error"]["field"] = error.field
        except Exception as error:
            log.exception("%s failed", header["kind"])
            answer["fault"] = repr(error)
        with suppress(ChannelClosed):
            self._send(answer, content)


def _resolve(future: Future[tuple[Message, bytes]], header: Message, data: bytes) -> None:
    """Complete a request with its answer."""
    if error := header.get("error"):
        facts = error["facts"] | ({"field": error["field"]} if "field" in error else {})
        future.set_exception(getattr(errors, error["name"])(error["text"], **facts))
    elif "fault" in header:
        future.set_exception(RuntimeError(header["fault"]))
    else:
        future.set_result((header["message"], data))
