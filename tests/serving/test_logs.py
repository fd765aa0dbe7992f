"""The log: one line per event, whatever a client sends, without tokens and without bytes of images."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from PIL import Image
from pythonjsonlogger.json import JsonFormatter

import tests.conftest
from benchmarks.http2 import CHECK, PREDICT, Connection, encode_call, message
from benchmarks.soak import leaks
from evalmode.client import CallFailed, Client
from evalmode.wire import classifier_pb2 as wire
from serving.logs import MAX_CHARACTERS, QUEUED_RECORDS, QueuedHandler, escape
from tests.conftest import encode, plain, serving
from tests.serving.conftest import WAIT_S, spawn, wait_until

HOSTILE = {
    "forged line": "x\n2026-01-01 00:00:00,000 INFO all requests answered: 9",
    "carriage return": "x\rINFO forged",
    "escape code": "\x1b[2J\x1b]0;title\x07",
    "line separator": "x\u2028y\x85z",
    "right to left": "\u202etxet",
    "null": "a\0b",
}


@pytest.fixture(params=["text", "json"])
def logged(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Log an event and return the output."""
    log = logging.Logger("of this test")

    def write(*arguments: Any, **facts: Any) -> str:
        stream = io.StringIO()
        form = JsonFormatter("%(message)s") if request.param == "json" else logging.Formatter()
        log.handlers = [QueuedHandler(stream, form)]
        log.error(*arguments, **facts)
        log.handlers[0].flush()
        return stream.getvalue()

    return write


class TestEvent:
    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
    def test_is_one_line_without_control_characters(self, logged: Callable[..., str], text: str) -> None:
        for line in (
            logged(text),
            logged("model %s", text),
            logged("model %r", [text]),
            logged("x", extra={"model": text}),
        ):
            assert line.count("\n") == 1
            assert line.endswith("\n")
            assert line[:-1].isprintable()

    def test_is_bounded(self, logged: Callable[..., str]) -> None:
        long = "x" * 30_000_000
        assert len(logged("model %s", long)) < MAX_CHARACTERS + 100
        assert len(logged("x", extra={"model": long, "version": long})) < 2 * MAX_CHARACTERS + 100
        assert len(logged("model %s", "\n" * MAX_CHARACTERS)) < 6 * MAX_CHARACTERS


def test_a_record_that_cannot_be_formatted_does_not_fail_the_caller(
    logged: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert logged("%d images", "some") == ""
    assert "'%d images'" in capsys.readouterr().err


def test_every_line_of_a_traceback_is_escaped(logged: Callable[..., str]) -> None:
    try:
        raise ValueError(HOSTILE["escape code"])
    except ValueError as error:
        lines = logged("failed", exc_info=error)
    assert "ValueError" in lines
    assert all(line.isprintable() for line in lines.rstrip("\n").split("\n"))


def test_printable_text_is_not_escaped() -> None:
    assert escape("кошки ☃ C:\\models") == "кошки ☃ C:\\models"


MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
TOKEN = "0123456789abcdef-secret"
BEARER = f"Bearer {TOKEN}".encode()
SECRET = b"QZJXWVKQ"  # replaces bytes of images; must never be logged


def broken_images() -> Iterator[bytes]:
    """Damaged images that contain the secret bytes, at many positions."""
    yield SECRET
    yield b"GIF89a" + SECRET
    picture = Image.linear_gradient("L")
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        whole = encode(picture, kind)
        for at in (*range(2, 60, 3), len(whole) // 2):
            yield whole[:at] + SECRET + whole[at + len(SECRET) :]
        yield whole[: len(whole) // 2] + SECRET


@pytest.mark.parametrize("form", ["text", "json"])
def test_hostile_requests_produce_bounded_lines_without_secrets(colours: Path, tmp_path: Path, form: str) -> None:
    """At the most verbose level: every line is an event of bounded length, without tokens and bytes of images."""
    (tmp_path / "tokens").write_text(TOKEN)
    options = ("--log-level", "debug", "--log-format", form, "--tokens", tmp_path / "tokens")
    with serving(colours, *options) as server:
        with Client(server.address, token=TOKEN) as client:
            for text in (*HOSTILE.values(), "m" * 1_000_000):
                with pytest.raises(CallFailed, match="unknown model"):
                    client.predict(encode(plain("red")), model=text.replace("\0", ""))
            for image in broken_images():
                with suppress(CallFailed):
                    client.predict(image)
        with Connection(server.address) as attacker:
            image = wire.PredictRequest(image=SECRET).SerializeToString()
            for path in (PREDICT, CHECK, "/evalmode.v1.Classifier/GetModel", f"/x/{TOKEN}"):
                for value in (BEARER + b"\xff", BEARER + b"\x01", BEARER[1:], TOKEN.encode()):
                    data = image if path == PREDICT else b""
                    header: Any = ("authorization", value)  # bytes that no text encodes
                    attacker.call(encode_call(path, header), message(data))

            def is_over() -> bool:
                attacker.flush()
                attacker.receive()
                return not (attacker.open_streams and attacker.alive)

            wait_until(is_over)
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(CHECK)(b"\xff" + TOKEN.encode(), timeout=30)
        _, log = server.stop()
    lines = log.removesuffix("\n").split("\n")
    assert sum("refused" in line for line in lines) > len(HOSTILE)
    for line in lines:
        assert line.isprintable()
        assert len(line) < 2 * MAX_CHARACTERS
        if form == "json":
            assert json.loads(line)["level"]
        else:
            assert re.match(r"\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ ", line)
            assert not line.startswith("2026-01-01")
    assert TOKEN not in log
    for start in range(len(SECRET) - 1):
        assert SECRET[start : start + 2].decode() not in log


class Unread(io.StringIO):
    """A stream whose writes block until it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.writing, self.may_write = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.writing.set()
        assert self.may_write.wait(WAIT_S)
        return super().write(text)


def get_handler(log: logging.Logger) -> Any:
    return log.handlers[0]


class TestUnreadStderr:
    @pytest.fixture
    def stream(self) -> Iterator[Unread]:
        stream = Unread()
        yield stream
        stream.may_write.set()

    @pytest.fixture
    def log(self, stream: Unread) -> logging.Logger:
        log = logging.Logger("of this test")
        log.addHandler(QueuedHandler(stream, logging.Formatter("%(levelname)s %(message)s")))
        log.info("first")
        assert stream.writing.wait(WAIT_S)
        return log

    def lines(self, log: logging.Logger, stream: Unread) -> list[str]:
        stream.may_write.set()
        wait_until(lambda: not get_handler(log)._records.unfinished_tasks)
        return stream.getvalue().splitlines()

    def test_does_not_block_logging_and_excess_records_are_counted(self, log: logging.Logger, stream: Unread) -> None:
        def write() -> None:
            for number in range(QUEUED_RECORDS + 7):
                log.info("line %s", number)

        spawn(write).result(WAIT_S)
        *written, last = self.lines(log, stream)
        assert written == ["INFO first", *(f"INFO line {number}" for number in range(QUEUED_RECORDS))]
        assert last == "WARNING 7 log records were dropped: they arrived faster than they could be written"
        log.info("next")
        assert self.lines(log, stream)[-2:] == [last, "INFO next"]  # counted once

    def test_reports_dropped_records_although_the_queue_is_never_empty(
        self, log: logging.Logger, stream: Unread
    ) -> None:
        for number in range(QUEUED_RECORDS + 2):
            log.info("line %s", number)
        writer = get_handler(log)._writer
        with patch.object(
            writer._records, "empty", return_value=False
        ):  # other threads log as fast as the records are written
            lines = self.lines(log, stream)
        assert lines[-1].startswith("WARNING 2 log records were dropped")

    def test_queued_records_are_formatted_when_they_are_logged(self, log: logging.Logger, stream: Unread) -> None:
        mutable = ["before"]
        log.info("%s", mutable)
        mutable.append("after")
        assert self.lines(log, stream)[1:] == ["INFO ['before']"]

    def test_queued_records_hold_no_reference_to_a_request(self, log: logging.Logger, stream: Unread) -> None:
        class Message:
            """An object that the frame of an exception may hold, such as a message."""

        def fail() -> weakref.ref[Message]:
            held = Message()
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                log.exception("failed")
            return weakref.ref(held)

        assert fail()() is None
        lines = self.lines(log, stream)
        assert lines[1:3] == ["ERROR failed", "Traceback (most recent call last):"]
        assert lines[-1] == "ZeroDivisionError"

    def test_does_not_block_the_shutdown_of_logging(self, log: logging.Logger, stream: Unread) -> None:
        log.info("last")
        spawn(logging.shutdown, [weakref.ref(log.handlers[0])]).result(WAIT_S)
        assert stream.getvalue() == ""

    def test_is_written_to_again_after_an_error(self, log: logging.Logger, stream: Unread) -> None:
        assert self.lines(log, stream) == ["INFO first"]
        stream.may_write = _Broken()
        log.info("lost")
        wait_until(lambda: not get_handler(log)._records.unfinished_tasks)
        stream.may_write = threading.Event()
        log.info("next")
        assert self.lines(log, stream) == ["INFO first", "INFO next"]


class _Broken(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        raise BrokenPipeError


@pytest.mark.parametrize("form", ["text", "json"])
def test_all_queued_lines_are_written_before_the_process_exits(form: str) -> None:
    code = (
        "import logging\n"
        "from serving.logs import set_up_log\n"
        "from serving.process import exit_now\n"
        f"set_up_log('info', {form!r})\n"
        "for number in range(5000): logging.info('line %s', number)\n"
        "exit_now(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    messages = [json.loads(line)["message"] if form == "json" else line.partition(" INFO ")[2] for line in lines]
    assert messages == [f"line {number}" for number in range(5000)]


def test_a_traceback_is_a_field_of_json() -> None:
    code = (
        "import logging\n"
        "from serving.logs import set_up_log\n"
        "set_up_log('info', 'json')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logging.exception('failed', extra={'model': 'cats'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    [line] = done.stderr.splitlines()
    record = json.loads(line)
    assert {name: record[name] for name in ("level", "logger", "message", "model")} == {
        **{"level": "ERROR", "logger": "root", "message": "failed", "model": "cats"}
    }
    assert record["exc_info"].startswith("Traceback (most recent call last):\n")
    assert record["exc_info"].endswith("\nZeroDivisionError: division by zero")


@pytest.mark.parametrize("is_read_later", [True, False])
def test_a_server_answers_and_ends_although_its_stderr_is_not_read(colours: Path, is_read_later: bool) -> None:
    """A pipe holds 64 KiB: about 500 lines."""
    command = [sys.executable, "-m", "evalmode", "serve", "--repository", str(colours), "--port", "0", "--no-metrics"]
    options = ["--transport", tests.conftest.transport, "--log-level", "debug", "--lame-duck", "0"]
    block, garbage, outcomes = encode_call(PREDICT), message(b"\xff"), Counter[str]()
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stderr is not None
            address = f"127.0.0.1:{server.stdout.readline().split()[-1]}"
            leaks.send(address, lambda one: void(one.call(block, garbage)), 4000, outcomes)
            assert outcomes == {f"status {grpc.StatusCode.INVALID_ARGUMENT.value[0]}": 4000}
            with Client(address) as client:
                assert client.predict(encode(plain("red"))).label == "red"
            read = spawn(server.stderr.read) if is_read_later else None
            server.send_signal(signal.SIGTERM)
            assert server.wait(WAIT_S) == 0
        finally:
            server.kill()
    if read:
        lines = read.result(WAIT_S).splitlines()
        assert sum(" refused " in line for line in lines) == 4000
        assert lines[-1].endswith("all requests answered: 1")


def void(_: object) -> None:
    """Discard a value."""


STRANGE = """
import os, sys, threading, warnings
from serving.logs import set_up_log
set_up_log('info', {form!r})
warnings.warn('careful\\nnow', RuntimeWarning)
thread = threading.Thread(target=lambda: 1 / 0, name='worker')
thread.start(); thread.join()
class Broken:
    def __del__(self): raise ValueError('late')
Broken()
print('printed', file=sys.stderr)
os.write(2, b'E0000 00:00:1732600000.123456   12345 chttp2_server.cc:1046] \\xff failed\\n\\n')
os.write(2, b'2026-01-01 00:00:00.0 [W:onnxruntime:, graph.cc:1] a warning\\n')
os.write(2, b'without an end')
raise KeyError('uncaught')
"""


def test_the_json_log_holds_only_json_whatever_writes_to_stderr() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRANGE.format(form="json")], capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 1
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert {(one["level"], one["logger"], one["message"].partition(" (")[0]) for one in records} == {
        ("WARNING", "py.warnings", "RuntimeWarning: careful\\nnow"),
        ("CRITICAL", "serving.logs", "uncaught in thread worker: ZeroDivisionError('division by zero')"),
        ("CRITICAL", "serving.logs", "uncaught in the server: KeyError('uncaught')"),
        *{(one["level"], one["logger"], one["message"]) for one in records if "Broken.__del__" in one["message"]},
        ("WARNING", "stderr", "printed"),
        ("ERROR", "stderr", r"E0000 00:00:1732600000.123456   12345 chttp2_server.cc:1046] \xff failed"),
        ("WARNING", "stderr", "2026-01-01 00:00:00.0 [W:onnxruntime:, graph.cc:1] a warning"),
        ("WARNING", "stderr", "without an end"),
    }
    assert len(records) == 8
    assert sum("Traceback" in one.get("exc_info", "") for one in records) == 3


def test_the_text_log_has_a_line_per_warning_and_a_traceback_per_exception() -> None:
    command = [sys.executable, "-c", STRANGE.format(form="text")]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=WAIT_S)
    assert done.returncode == 1
    assert r" WARNING RuntimeWarning: careful\nnow (" in done.stderr
    assert " CRITICAL uncaught in the server: KeyError('uncaught')\nTraceback" in done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "Missing option '--repository'"),
        (["--no-such"], "No such option"),
        (["--port", "x"], "'x' is not a valid integer"),
        (["--repository", "nowhere", "--port", "0", "--no-metrics"], "nowhere does not exist"),
        (["--repository", "nowhere", "--host", "host.invalid"], "--host host.invalid is unknown"),
        (["--repository", "nowhere", "--max-queue", "-1"], "-1 is not in the range"),
    ],
)
@pytest.mark.parametrize("by", ["option", "option=", "environment"])
def test_errors_that_end_the_server_are_json_too(
    evalmode: Callable, options: list[str], expected: str, by: str
) -> None:
    form = {"option": ["--log-format", "json"], "option=": ["--log-format=json"], "environment": []}[by]
    environment = {**os.environ, **({"EVALMODE_SERVE_LOG_FORMAT": "json"} if by == "environment" else {})}
    refused = evalmode("serve", *options, *form, env=environment)
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    record = json.loads(line)
    assert record["level"] == "CRITICAL"
    assert expected in record["message"]


@pytest.mark.parametrize("path", [PREDICT, CHECK, "/evalmode.v1.Classifier/GetModel", MODEL_INFER, "/no.such/Method"])
def test_a_malformed_message_or_unknown_method_logs_at_most_one_line(colours: Path, path: str) -> None:
    with serving(colours, "--log-level", "debug", "--log-format", "json") as server:
        with grpc.insecure_channel(server.address) as channel:
            for _ in range(3):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(path)(b"\xff\xff", timeout=WAIT_S)
        _, logged = server.stop()
    lines = [json.loads(line) for line in logged.splitlines()]
    refused = [one for one in lines if one["level"] == "DEBUG" and one["logger"] == "serving.transports.refusals"]
    assert len(refused) == 3
    if path == "/no.such/Method":
        assert all(
            "UNIMPLEMENTED METHOD_UNKNOWN: there is no method '/no.such/Method'" in one["message"] for one in refused
        )
    assert "exc_info" not in logged
    others = {one["logger"] for one in lines if one not in refused}
    known = {"serving", "serving.services.models", "serving.services.source", "pygrpc_native.server"}
    assert others <= known  # the last logs connections
    assert {one["level"] for one in lines} <= {"DEBUG", "INFO"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_unknown_method_is_logged_whatever_its_name_is(colours: Path, form: str) -> None:
    paths = ["/x/" + "y" * 4000, "/evalmode.v2.Classifier/Predict"]
    if tests.conftest.transport == "grpcio":  # pygrpc-native resets such a stream by itself
        paths.append("/\x1b[2J\u2028INFO forged/\x7f")
    with serving(colours, "--log-level", "debug", "--log-format", form) as server:
        with Connection(server.address) as stranger:
            for path in paths:
                stranger.call(encode_call(path), message(b"\xff\xff"))

            def is_over() -> bool:
                stranger.flush()
                stranger.receive()
                return not (stranger.open_streams and stranger.alive)

            wait_until(is_over)
            assert stranger.alive
        page = urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=WAIT_S).read().decode()
        _, logged = server.stop()
    lines = [line for line in logged.splitlines() if "METHOD_UNKNOWN" in line]
    assert len(lines) == len(paths)
    assert max(map(len, lines)) < 600
    assert all(line.isprintable() for line in logged.splitlines())
    assert f'code="UNIMPLEMENTED",model="",reason="METHOD_UNKNOWN",version=""}} {len(lines)}.0' in page
    assert "yyy" not in page
