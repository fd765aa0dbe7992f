"""The log: an event is a line whatever a caller puts into it, and neither tokens nor image bytes are in it."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from http2 import CHECK, PREDICT, Connection, encode_call, message
from PIL import Image
from pythonjsonlogger.json import JsonFormatter

from serving.client import CallFailed, Client
from serving.commands.logs import MAX_CHARACTERS, escape, make_harmless
from serving.wire import classifier_pb2 as wire
from tests.conftest import encode, plain, serving
from tests.serving.conftest import wait_until

HOSTILE = {
    "forged line": "x\n2026-01-01 00:00:00,000 INFO all requests answered: 9",
    "carriage return": "x\rINFO forged",
    "escape code": "\x1b[2J\x1b]0;title\x07",
    "line separator": "x\u2028y\x85z",
    "right to left": "\u202etxet",
    "null": "a\0b",
}


@pytest.fixture(params=["text", "json"])
def logged(request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """What an event makes of the log."""
    log = logging.Logger("of this test")

    def write(*arguments: object, **facts: object) -> str:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        if request.param == "json":
            handler.setFormatter(JsonFormatter("%(message)s"))
        handler.addFilter(make_harmless)
        log.handlers = [handler]
        log.error(*arguments, **facts)
        return stream.getvalue()

    return write


class TestAnEvent:
    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
    def test_is_a_line_without_control_characters(self, logged: Callable[..., str], text: str) -> None:
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


def test_text_that_can_be_read_is_not_escaped() -> None:
    assert escape("кошки ☃ C:\\models") == "кошки ☃ C:\\models"


TOKEN = "0123456789abcdef-secret"
BEARER = f"Bearer {TOKEN}".encode()
SECRET = b"QZJXWVKQ"  # stands in images where damage is found


def broken_images() -> Iterator[bytes]:
    """Images with bytes in them that nobody else may see, at each place."""
    yield SECRET
    yield b"GIF89a" + SECRET
    picture = Image.linear_gradient("L")
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        whole = encode(picture, kind)
        for at in (*range(2, 60, 3), len(whole) // 2):
            yield whole[:at] + SECRET + whole[at + len(SECRET) :]
        yield whole[: len(whole) // 2] + SECRET


@pytest.mark.parametrize("form", ["text", "json"])
def test_of_a_server_that_strangers_write_to(colours: Path, tmp_path: Path, form: str) -> None:
    """Every line is an event, bounded, at the level that logs most; it has neither tokens nor bytes of images."""
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
        with Connection(server.address) as stranger:
            image = wire.PredictRequest(image=SECRET).SerializeToString()
            for path in (PREDICT, CHECK, "/evalmode.v1.Classifier/GetModel", f"/x/{TOKEN}"):
                for value in (BEARER + b"\xff", BEARER + b"\x01", BEARER[1:], TOKEN.encode()):
                    data = image if path == PREDICT else b""
                    stranger.call(encode_call(path, ("authorization", value)), message(data))

            def is_over() -> bool:
                stranger.flush()
                stranger.receive()
                return not (stranger.open_streams and stranger.alive)

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
