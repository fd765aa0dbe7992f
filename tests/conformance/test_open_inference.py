"""The rules of the Open Inference Protocol v2, one per test; docs/reference/conformance.md shows the docstrings.

The section of the specification (https://github.com/kserve/open-inference-protocol,
specification/protocol/inference_grpc.md) of each rule is in brackets. Quotations are from the specification; the other
rules state the status that a client needs to react: docs/reference/wire-protocol.md.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2

from evalmode.wire import open_inference_pb2 as wire
from evalmode.wire import open_inference_pb2_grpc as wire_grpc
from tests.conformance.conftest import MANY, WAIT_S, Target, code_of, read_outputs
from tests.conformance.specification import NUMPY
from tests.conftest import Server, encode, plain
from tests.serving.conftest import wait_until
from tests.serving.services.test_metrics import scrape

Stub = wire_grpc.GRPCInferenceServiceStub


def test_live(stub: Stub) -> None:
    """ServerLive is true [Server Live]"""
    assert stub.ServerLive(wire.ServerLiveRequest(), timeout=WAIT_S).live


def test_ready(stub: Stub) -> None:
    """ServerReady is true [Server Ready]"""
    assert stub.ServerReady(wire.ServerReadyRequest(), timeout=WAIT_S).ready


def test_model_ready(target: Target) -> None:
    """ModelReady of a loaded model is true, with and without its version [Model Ready]"""
    for version in ("", *target.metadata.versions[:1]):
        request = wire.ModelReadyRequest(name=target.metadata.name, version=version)
        assert target.stub.ModelReady(request, timeout=WAIT_S).ready


def test_model_not_ready(stub: Stub) -> None:
    """ModelReady of an unknown model is false, or NOT_FOUND [Model Ready]"""
    request = wire.ModelReadyRequest(name="unknown")
    code = code_of(lambda: stub.ModelReady(request, timeout=WAIT_S))
    assert code == "NOT_FOUND" or not stub.ModelReady(request, timeout=WAIT_S).ready


def test_server_metadata(stub: Stub) -> None:
    """ServerMetadata has a name and a version [Server Metadata]"""
    metadata = stub.ServerMetadata(wire.ServerMetadataRequest(), timeout=WAIT_S)
    assert metadata.name
    assert metadata.version


def test_model_metadata(target: Target) -> None:
    """ModelMetadata has a name, and inputs and outputs with a name, a datatype and a shape [Model Metadata]"""
    metadata = target.metadata
    assert metadata.name
    assert metadata.inputs
    assert metadata.outputs
    for tensor in (*metadata.inputs, *metadata.outputs):
        assert tensor.name
        assert tensor.datatype in {*NUMPY, "BYTES"}
        assert tensor.shape


def test_variable_sides(target: Target) -> None:
    """'A variable-size dimension is represented by a -1 value' [Model Metadata]"""
    for tensor in (*target.metadata.inputs, *target.metadata.outputs):
        assert all(side == -1 or side > 0 for side in tensor.shape)


def test_platform(target: Target) -> None:
    """The platform has the form project_format [Platforms]"""
    assert re.fullmatch(r"[a-z0-9]+_[a-z0-9]+", target.metadata.platform)


def test_metadata_of_an_unknown_model(stub: Stub) -> None:
    """ModelMetadata of an unknown model: NOT_FOUND [Model Metadata]"""
    request = wire.ModelMetadataRequest(name="unknown")
    assert code_of(lambda: stub.ModelMetadata(request, timeout=WAIT_S)) == "NOT_FOUND"


def test_raw(target: Target) -> None:
    """Without requested outputs, the reply to raw contents has every output of the model [Inference]"""
    reply = target.infer(target.request())
    assert [output.name for output in reply.outputs] == [output.name for output in target.metadata.outputs]
    assert reply.model_name == target.metadata.name


def test_typed(target: Target) -> None:
    """Typed and raw contents give the same values [Tensor Data]"""
    assert read_outputs(target.infer(target.request(typed=True))) == read_outputs(target.infer(target.request()))


def test_row_major(target: Target) -> None:
    """'flattened, one-dimensional, row-major order': a batch has the outputs of its single inputs [Tensor Data]"""
    together = target.request(batch=2)
    reply = target.infer(together)
    for output in reply.outputs:
        assert output.shape[0] == 2
    rows = {name: np.split(array, 2) for name, array in target.arrays(2).items()}
    for row in range(2):
        alone = target.request()
        for place, tensor in enumerate(target.metadata.inputs):
            alone.raw_input_contents[place] = rows[tensor.name][row].tobytes()
        for name, values in read_outputs(target.infer(alone)).items():
            whole = read_outputs(reply)[name]
            assert np.allclose(whole[row * len(values) : (row + 1) * len(values)], values, rtol=1e-5, atol=1e-5)


def test_output_sizes(target: Target) -> None:
    """'the size of this content must match what is expected by the tensor's shape and data type' [Inference]"""
    reply = target.infer(target.request())
    assert len(reply.raw_output_contents) in (0, len(reply.outputs))
    for values, output in zip(read_outputs(reply).values(), reply.outputs, strict=True):
        assert len(values) == math.prod(output.shape)


def test_raw_or_typed_outputs(target: Target) -> None:
    """If raw outputs are returned, typed ones 'must not be specified for any output tensor' [Inference]"""
    for typed in (False, True):
        reply = target.infer(target.request(typed=typed))
        if reply.raw_output_contents:
            assert not any(output.contents.ListFields() for output in reply.outputs)


def test_id(target: Target) -> None:
    """The id of a request, 'if specified will be returned in the response' [Inference]"""
    assert target.infer(target.request(id="request 7")).id == "request 7"


def test_requested_output(target: Target) -> None:
    """Only the requested outputs are returned, in the requested order [Inference]"""
    names = [output.name for output in target.metadata.outputs][::-1]
    for wanted in (names, names[:1]):
        request = target.request()
        for name in wanted:
            request.outputs.add(name=name)
        assert [output.name for output in target.infer(request).outputs] == wanted


def test_unknown_output(target: Target) -> None:
    """An unknown requested output: INVALID_ARGUMENT [Inference]"""
    request = target.request()
    request.outputs.add(name="unknown")
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_duplicate_output(target: Target) -> None:
    """An output that is requested twice: INVALID_ARGUMENT [Inference]"""
    request = target.request()
    for _ in range(2):
        request.outputs.add(name=target.metadata.outputs[0].name)
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_unknown_model(target: Target) -> None:
    """ModelInfer of an unknown model: NOT_FOUND [Inference]"""
    assert code_of(lambda: target.infer(target.request(model_name="unknown"))) == "NOT_FOUND"


def test_unknown_version(target: Target) -> None:
    """ModelInfer of an unknown version: NOT_FOUND [Inference]"""
    assert code_of(lambda: target.infer(target.request(model_version="987654"))) == "NOT_FOUND"


def test_given_version(target: Target) -> None:
    """ModelInfer of a version from the metadata is answered by that version, which the reply names [Inference]"""
    assert target.metadata.versions
    version = target.metadata.versions[0]
    assert target.infer(target.request(model_version=version)).model_version == version


def test_unknown_input(target: Target) -> None:
    """An unknown input: INVALID_ARGUMENT [Inference]"""
    request = target.request()
    request.inputs[0].name = "unknown"
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_missing_input(target: Target) -> None:
    """A missing input: INVALID_ARGUMENT [Inference]"""
    request = target.request()
    request.inputs.pop()
    request.raw_input_contents.pop()
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_duplicate_input(target: Target) -> None:
    """An input that is given twice: INVALID_ARGUMENT [Inference]"""
    request = target.request()
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("change", [-1, 1])
def test_raw_size(target: Target, change: int) -> None:
    """Raw contents whose size differs from shape and datatype: INVALID_ARGUMENT [Inference]"""
    request = target.request()
    content = request.raw_input_contents[0]
    request.raw_input_contents[0] = content[:-1] if change < 0 else content + b"\0"
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_raw_count(target: Target) -> None:
    """A number of raw contents that differs from the number of inputs: INVALID_ARGUMENT [Inference]"""
    request = target.request()
    request.raw_input_contents.append(request.raw_input_contents[0])
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_raw_and_typed(target: Target) -> None:
    """With raw contents, typed ones 'must not be specified for any input tensor': INVALID_ARGUMENT [Inference]"""
    request = target.request(typed=True)
    request.raw_input_contents.extend(target.request().raw_input_contents)
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_typed_size(target: Target) -> None:
    """Typed contents whose size differs from the shape: INVALID_ARGUMENT [Tensor Data]"""
    request = target.request(typed=True)
    [(_, contents)] = request.inputs[0].contents.ListFields()
    contents.append(contents[0])
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_typed_field(target: Target) -> None:
    """Typed contents in the field of another datatype: INVALID_ARGUMENT [Tensor Data]"""
    request = target.request(typed=True)
    request.inputs[0].contents.Clear()
    size = math.prod(request.inputs[0].shape)
    field = "fp64_contents" if request.inputs[0].datatype != "FP64" else "int64_contents"
    getattr(request.inputs[0].contents, field).extend([0] * size)
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_datatype(target: Target) -> None:
    """A datatype that is not the model's: INVALID_ARGUMENT [Tensor Data Types]"""
    request = target.request()
    request.inputs[0].datatype = "INT64"
    request.raw_input_contents[0] = bytes(8 * math.prod(request.inputs[0].shape))
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_unknown_datatype(target: Target) -> None:
    """A datatype that the protocol does not define: INVALID_ARGUMENT [Tensor Data Types]"""
    request = target.request()
    request.inputs[0].datatype = "DECIMAL"
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_bytes(target: Target) -> None:
    """BYTES that are not an image, to any model: INVALID_ARGUMENT [Tensor Data Types]"""
    request = target.request()
    for place, sent in enumerate(request.inputs):
        sent.datatype = "BYTES"
        sent.shape[:] = [1]
        request.raw_input_contents[place] = b"\x05\0\0\0hello"
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_shape(target: Target) -> None:
    """A shape that is not the model's: INVALID_ARGUMENT [Inference]"""
    request = target.request()
    request.inputs[0].shape.append(1)
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_negative_shape(target: Target) -> None:
    """A shape with negative dimensions: INVALID_ARGUMENT [Inference]"""
    request = target.request()
    request.inputs[0].shape[:] = [-side for side in request.inputs[0].shape]
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_overflowing_shape(target: Target) -> None:
    """A shape whose number of elements exceeds 64 bits: INVALID_ARGUMENT [Inference]"""
    request = target.request()
    request.inputs[0].shape[0] = 2**62
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_nan(target: Target) -> None:
    """NaN in floating-point inputs: INVALID_ARGUMENT [Tensor Data]"""
    request = target.request()
    floats = [place for place, sent in enumerate(request.inputs) if sent.datatype in ("FP16", "FP32", "FP64")]
    if not floats:
        pytest.skip("no input can hold NaN")
    for place in floats:
        sent = request.inputs[place]
        request.raw_input_contents[place] = np.full(sent.shape, np.nan, NUMPY[sent.datatype]).tobytes()
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_large_message(target: Target) -> None:
    """64 MiB: RESOURCE_EXHAUSTED, or INVALID_ARGUMENT if allowed; then a small request succeeds [Inference]"""
    request = target.request()
    request.raw_input_contents[0] = bytes(64 * 2**20)
    assert code_of(lambda: target.infer(request)) in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
    assert code_of(lambda: target.infer(target.request())) == "OK"


def test_half_precision(target: Target) -> None:
    """FP16 'must be represented as raw content': typed contents are INVALID_ARGUMENT [Inference]"""
    request = target.request()
    if "FP16" not in {sent.datatype for sent in request.inputs}:
        pytest.skip("no input is FP16")
    request.ClearField("raw_input_contents")
    for sent in request.inputs:
        sent.contents.fp32_contents.extend([0] * math.prod(sent.shape))
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_bool(target: Target) -> None:
    """BOOL has 1 byte per element; 4 bytes are INVALID_ARGUMENT [Tensor Data Types]"""
    if "BOOL" not in {sent.datatype for sent in target.request().inputs}:
        pytest.skip("no input is BOOL")
    codes = []
    for size in (1, 4):
        request = target.request()
        for place, sent in enumerate(request.inputs):
            request.raw_input_contents[place] = bytes(size * math.prod(sent.shape))
        codes.append(code_of(partial(target.infer, request)))
    assert codes == ["OK", "INVALID_ARGUMENT"]


@pytest.mark.parametrize("raw", [b"\xff\xff\xff\xffhello", b"\x06\0\0\0hello", b"\0\0\0\0hello", b"\x05\0"])
def test_bytes_that_lie(target: Target, raw: bytes) -> None:
    """BYTES whose 4-byte length prefixes are wrong: INVALID_ARGUMENT [Tensor Data]"""
    request = target.request()
    for place, sent in enumerate(request.inputs):
        sent.datatype = "BYTES"
        sent.shape[:] = [1]
        request.raw_input_contents[place] = raw
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_damaged_image(target: Target) -> None:
    """A truncated image, to an image classifier: INVALID_ARGUMENT [Inference]"""
    [*_, pixels] = target.metadata.inputs
    if pixels.datatype != "UINT8" or len(pixels.shape) != 4:
        pytest.skip("the model takes no images")
    image = encode(plain("red", (64, 64)), "JPEG")
    sent = {"name": pixels.name, "datatype": "BYTES", "shape": [1]}
    request = wire.ModelInferRequest(model_name=target.metadata.name, inputs=[sent])
    request.inputs[0].contents.bytes_contents.append(image[: len(image) // 2])
    assert code_of(lambda: target.infer(request)) == "INVALID_ARGUMENT"


def test_timeout(busy: Server) -> None:
    """A request whose parameter `timeout` expires while it waits: DEADLINE_EXCEEDED, and it does not run [Inference]"""
    with grpc.insecure_channel(busy.address) as channel:
        stub = wire_grpc.GRPCInferenceServiceStub(channel)
        executions = count_executions(stub)
        request = make_pixel_request(parameters={"timeout": {"int64_param": 1}})
        assert code_of(lambda: stub.ModelInfer(request, timeout=WAIT_S)) == "DEADLINE_EXCEEDED"
        assert count_executions(stub) == executions


def test_deadline(busy: Server) -> None:
    """A deadline that expires: DEADLINE_EXCEEDED; then a request succeeds [Inference]"""
    with grpc.insecure_channel(busy.address) as channel:
        stub = wire_grpc.GRPCInferenceServiceStub(channel)
        assert code_of(lambda: stub.ModelInfer(make_pixel_request(), timeout=0.1)) == "DEADLINE_EXCEEDED"
        expect_answer(stub)


def test_cancelled(busy: Server) -> None:
    """A call that the client cancels: CANCELLED; then a request succeeds [Inference]"""
    with grpc.insecure_channel(busy.address) as channel:
        stub = wire_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelInfer.future(make_pixel_request(), timeout=WAIT_S)
        wait_until(lambda: scrape(busy)("evalmode_requests_in_flight")[()] == 1)
        call.cancel()
        assert call.code().name == "CANCELLED"
        expect_answer(stub)


def test_overload(busy: Server) -> None:
    """More requests than the server accepts: RESOURCE_EXHAUSTED with google.rpc.RetryInfo [Inference]"""
    with grpc.insecure_channel(busy.address) as channel:
        stub = wire_grpc.GRPCInferenceServiceStub(channel)
        asked = [stub.ModelInfer.future(make_pixel_request(), timeout=WAIT_S) for _ in range(MANY)]
        errors = [error for error in (one.exception() for one in asked) if error is not None]
    assert {error.code().name for error in errors} == {"RESOURCE_EXHAUSTED"}
    for error in errors:
        [status] = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
        kinds = [detail.TypeName() for detail in status_pb2.Status.FromString(status).details]
        assert "google.rpc.RetryInfo" in kinds


def test_draining(stopped: Server) -> None:
    """A server that shuts down is not ready, and answers requests until it stops [Server Ready]"""
    with grpc.insecure_channel(stopped.address) as channel:
        stub = wire_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(wire.ServerReadyRequest(), timeout=WAIT_S).ready
        stopped.process.terminate()
        wait_until(lambda: not stub.ServerReady(wire.ServerReadyRequest(), timeout=WAIT_S).ready)
        assert stub.ServerLive(wire.ServerLiveRequest(), timeout=WAIT_S).live
        assert code_of(lambda: stub.ModelInfer(make_pixel_request(), timeout=WAIT_S)) == "OK"


def count_executions(stub: Stub) -> int:
    """How often the busy server has run its model."""
    [statistics] = stub.ModelStatistics(wire.ModelStatisticsRequest(), timeout=WAIT_S).model_stats
    return int(statistics.execution_count)


def expect_answer(stub: Stub) -> None:
    """Wait until the slots of the busy server are free and a request is answered."""
    wait_until(lambda: code_of(lambda: stub.ModelInfer(make_pixel_request(), timeout=WAIT_S)) == "OK")


def make_pixel_request(**fields: Any) -> wire.ModelInferRequest:
    """A request to the model of the busy server."""
    sent = {"name": "image", "datatype": "UINT8", "shape": [1, 4, 4, 3]}
    return wire.ModelInferRequest(inputs=[sent], raw_input_contents=[bytes(48)], **fields)


def test_not_served(stub: Stub) -> None:
    """An unsupported method: UNIMPLEMENTED [Service]"""
    code = code_of(lambda: stub.CudaSharedMemoryStatus(wire.CudaSharedMemoryStatusRequest(), timeout=WAIT_S))
    assert code in ("UNIMPLEMENTED", "OK")
