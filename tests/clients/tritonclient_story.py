"""The gRPC API of tritonclient against a server; tests/e2e/test_tritonclient.py runs this in a separate environment.

python tritonclient_story.py HOST:PORT      every call, with assertions; prints the names of the chapters
python tritonclient_story.py --descriptors  the contract of tritonclient, as JSON
"""

from __future__ import annotations

import asyncio
import io
import json
import queue
import sys
from collections.abc import Iterator

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor import Descriptor
from PIL import Image
from tritonclient.utils import InferenceServerException

COLOURS = ["red", "green", "blue"]
PIXELS = np.stack([np.full((4, 4, 3), np.eye(3, dtype=np.uint8)[row] * 255, np.uint8) for row in range(3)])
CONTROL = {"authorization": "Bearer who-may-load-and-unload"}  # the control token of the server


def image(colour: str, image_format: str = "JPEG") -> bytes:
    """An encoded image whose size differs from that of the model."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, image_format)
    return buffer.getvalue()


def make_input(pixels: np.ndarray, module: object = triton) -> list[triton.InferInput]:
    """Pixels as the input of a request."""
    sent = module.InferInput("image", list(pixels.shape), "UINT8")
    sent.set_data_from_numpy(pixels)
    return [sent]


def best_labels(result: triton.InferResult, name: str = "probabilities") -> list[str]:
    """The best label of each row."""
    return [COLOURS[row] for row in result.as_numpy(name).argmax(axis=1)]


def health(client: triton.InferenceServerClient) -> None:
    """The server is live and ready; a model is ready only if it is loaded."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("colours")
    assert client.is_model_ready("colours", "1")
    assert not client.is_model_ready("unknown")


def metadata(client: triton.InferenceServerClient) -> None:
    """The metadata of server and model, as messages and as JSON."""
    assert client.get_server_metadata().name == "evalmode"
    model = client.get_model_metadata("colours", as_json=True)
    assert model["platform"] == "onnx_onnxv1"
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": ["-1", "4", "4", "3"]}]
    assert [one["name"] for one in model["outputs"]] == ["probabilities", "logits"]


def config(client: triton.InferenceServerClient) -> None:
    """The configuration of a model, with its labels."""
    model = client.get_model_config("colours").config
    assert (model.max_batch_size, list(model.input[0].dims)) == (64, [4, 4, 3])
    assert json.loads(model.parameters["labels"].string_value) == COLOURS


def infer(client: triton.InferenceServerClient) -> None:
    """A batch as raw contents, with all outputs or a requested one, and with an id."""
    result = client.infer("colours", make_input(PIXELS), request_id="one")
    assert best_labels(result) == COLOURS
    assert result.get_response().id == "one"
    outputs = [triton.InferRequestedOutput("logits")]
    result = client.infer("colours", make_input(PIXELS[:1]), outputs=outputs, client_timeout=30, timeout=30_000_000)
    assert best_labels(result, "logits") == ["red"]
    assert result.as_numpy("probabilities") is None


def classification(client: triton.InferenceServerClient) -> None:
    """The best two labels of each image."""
    outputs = [triton.InferRequestedOutput("probabilities", class_count=2)]
    rows = client.infer("colours", make_input(PIXELS), outputs=outputs).as_numpy("probabilities")
    assert rows.shape == (3, 2)
    assert [row[0].decode().split(":")[1:] for row in rows] == [["0", "red"], ["1", "green"], ["2", "blue"]]


def encoded(client: triton.InferenceServerClient) -> None:
    """JPEG and PNG as BYTES, decoded by the server."""
    sent = triton.InferInput("image", [2], "BYTES")
    sent.set_data_from_numpy(np.array([image("red"), image("blue", "PNG")], dtype=np.object_))
    assert best_labels(client.infer("colours", [sent])) == ["red", "blue"]


def typed(client: triton.InferenceServerClient) -> None:
    """Typed contents, sent by the stub of tritonclient."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="colours", id="typed")
    sent = request.inputs.add(name="image", datatype="UINT8", shape=[1, 4, 4, 3])
    sent.contents.uint_contents.extend(PIXELS[1].ravel().tolist())
    reply = client._client_stub.ModelInfer(request)
    assert reply.id == "typed"
    assert np.argmax(reply.outputs[0].contents.fp32_contents) == 1


def callbacks(client: triton.InferenceServerClient) -> None:
    """async_infer passes each answer to a function."""
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    for row in range(3):
        client.async_infer(
            "colours", make_input(PIXELS[row : row + 1]), lambda result, error: answers.put((result, error))
        )
    found = [answers.get(timeout=30) for _ in range(3)]
    assert all(error is None for _, error in found)
    assert sorted(best_labels(result)[0] for result, _ in found) == sorted(COLOURS)


def stream(client: triton.InferenceServerClient) -> None:
    """A stream continues after an invalid request."""
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for row in (0, 1):
        client.async_stream_infer("colours", make_input(PIXELS[row : row + 1]), request_id=str(row))
    client.async_stream_infer("colours", make_input(PIXELS[:1, :, :2]), request_id="invalid")
    client.async_stream_infer("colours", make_input(PIXELS[2:]), request_id="2", enable_empty_final_response=True)
    found = [answers.get(timeout=30) for _ in range(4)]
    client.stop_stream()
    assert [best_labels(result)[0] for result, error in found if error is None] == COLOURS
    responses = [result.get_response() for result, error in found if error is None]
    marked = [("triton_final_response" in response.parameters) for response in responses]
    assert ([response.id for response in responses], marked) == (["0", "1", "2"], [False, False, True])
    [error] = [error for _, error in found if error is not None]
    assert "1x4x2x3, the model expects Nx4x4x3" in str(error)


def refusals(client: triton.InferenceServerClient) -> None:
    """Errors have the status of their cause."""
    expected = {
        "StatusCode.NOT_FOUND": ("unknown", PIXELS),
        "StatusCode.INVALID_ARGUMENT": ("colours", PIXELS[:, :2]),
    }
    for status, (name, pixels) in expected.items():
        try:
            client.infer(name, make_input(pixels))
        except InferenceServerException as error:
            found = error.status()
        else:
            found = "an answer"
        assert found == status, found
    for call in (client.get_system_shared_memory_status, client.get_trace_settings, client.get_log_settings):
        try:
            call()
        except InferenceServerException as error:
            found = error.status()
        else:
            found = "an answer"
        assert found == "StatusCode.UNIMPLEMENTED", (call, found)


def repository(client: triton.InferenceServerClient) -> None:
    """List, unload and load the models of the repository."""
    [entry] = client.get_model_repository_index().models
    assert (entry.name, entry.version, entry.state) == ("colours", "1", "READY")
    client.unload_model("colours", headers=CONTROL)
    assert not client.is_model_ready("colours")
    client.load_model("colours", headers=CONTROL)
    assert client.is_model_ready("colours")


def statistics(client: triton.InferenceServerClient) -> None:
    """The statistics count every request."""
    [before] = client.get_inference_statistics("colours").model_stats
    client.infer("colours", make_input(PIXELS))
    [after] = client.get_inference_statistics("colours").model_stats
    assert after.inference_count - before.inference_count == 3
    assert after.execution_count - before.execution_count == 1
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1


CHAPTERS = (
    *(health, metadata, config, infer, classification, encoded, typed),
    *(callbacks, stream, refusals, repository, statistics),
)


async def check_asyncio(address: str) -> None:
    """The same calls by the asyncio client: many concurrent requests, and a stream."""
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_model_ready("colours")
        assert (await client.get_server_metadata()).name == "evalmode"
        calls = [client.infer("colours", make_input(PIXELS[row % 3 : row % 3 + 1], triton_aio)) for row in range(30)]
        assert [best_labels(result)[0] for result in await asyncio.gather(*calls)] == COLOURS * 10

        async def requests() -> object:
            for row in range(3):
                yield {"model_name": "colours", "inputs": make_input(PIXELS[row : row + 1], triton_aio)}

        answers = [answer async for answer in client.stream_infer(requests())]
        assert [best_labels(result)[0] for result, error in answers if error is None] == COLOURS


def list_fields(message: Descriptor) -> Iterator[list[object]]:
    """Every field of a message and of its nested messages: message, name, number, type, repeated."""
    for field in message.fields:
        inner = field.message_type or field.enum_type
        yield [message.full_name, field.name, field.number, inner.full_name if inner else field.type, field.is_repeated]
    for nested in message.nested_types:
        yield from list_fields(nested)


def list_descriptors() -> dict[str, list[object]]:
    """The fields, enum values and calls of the contract of tritonclient."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    files = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
    fields = [
        field for file in files for message in file.message_types_by_name.values() for field in list_fields(message)
    ]
    values = [[v.name, v.number] for file in files for enum in file.enum_types_by_name.values() for v in enum.values]
    [service] = service_pb2.DESCRIPTOR.services_by_name.values()
    calls = [
        [one.name, one.input_type.full_name, one.output_type.full_name, one.client_streaming, one.server_streaming]
        for one in service.methods
    ]
    return {"fields": fields, "values": values, "calls": calls}


def main() -> None:
    """Run every chapter, or print the contract."""
    if sys.argv[1] == "--descriptors":
        print(json.dumps(list_descriptors()))
        return
    with triton.InferenceServerClient(sys.argv[1]) as client:
        for chapter in CHAPTERS:
            chapter(client)
            print(chapter.__name__, flush=True)
    asyncio.run(check_asyncio(sys.argv[1]))
    print("asyncio")


if __name__ == "__main__":
    main()
