"""Properties of the parsers of requests and tokens: any bytes are parsed, or refused with a reason."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalmode.errors import RequestError, TokensInvalid
from evalmode.runtime.model import ImageClassifier
from evalmode.wire import open_inference_pb2 as wire
from serving.services.access import Tokens
from tests.conftest import encode, plain
from tests.mutated import mutated
from tests.serving.conftest import Direct
from tests.serving.services.test_open_inference import pack, serve

RED = encode(plain("red"))
IMAGES = [pack(RED), pack(RED, RED), pack(b"", RED)]
TOKENS = b"# for predictions\n0123456789abcdef\nfedcba9876543210 2099-01-31T00:00:00Z\n"
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def service(model: ImageClassifier) -> Direct:
    return serve(model)


def answer(service: Direct, request: wire.ModelInferRequest) -> wire.ModelInferResponse | None:
    """The reply, or None if the request is refused with a reason."""
    try:
        reply: wire.ModelInferResponse = service.ask(request)
    except RequestError:
        return None
    return reply


@QUICK
@given(raw=mutated(IMAGES) | st.binary(max_size=60), count=st.integers(0, 3))
def test_any_raw_images_are_answered_or_refused(service: Direct, raw: bytes, count: int) -> None:
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [count]}]
    reply = answer(service, wire.ModelInferRequest(inputs=inputs, raw_input_contents=[raw]))
    assert reply is None or reply.outputs[0].shape[0] == count


@QUICK
@given(parts=st.lists(st.binary(max_size=30), max_size=3))
def test_raw_images_are_split_by_their_lengths(service: Direct, parts: list[bytes]) -> None:
    """The count of parts is right, so that the refusal names the first part that is not an image."""
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [len(parts) + 1]}]
    request = wire.ModelInferRequest(inputs=inputs, raw_input_contents=[pack(RED, *parts)])
    if parts:
        with pytest.raises(RequestError) as caught:
            service.ask(request)
        assert caught.value.field == "inputs[0][1]"
    else:
        assert answer(service, request) is not None


@QUICK
@given(raw=st.binary(max_size=100), shape=st.lists(st.integers(-2, 5) | st.integers(), max_size=5))
def test_any_raw_pixels_are_answered_or_refused(service: Direct, raw: bytes, shape: list[int]) -> None:
    if all(-(2**63) <= side < 2**63 for side in shape):
        inputs = [{"name": "image", "datatype": "UINT8", "shape": shape}]
        reply = answer(service, wire.ModelInferRequest(inputs=inputs, raw_input_contents=[raw]))
        assert reply is None or len(raw) == np.prod(shape)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80) | mutated([TOKENS]))
def test_any_file_of_tokens_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens"
        path.write_bytes(content)
        try:
            tokens = Tokens(path)
        except TokensInvalid:
            return
    assert not tokens.holds("")
    assert not tokens.holds("another token of the same length")


def test_the_length_of_an_element_is_little_endian() -> None:
    assert pack(b"ab") == struct.pack("<I", 2) + b"ab"
