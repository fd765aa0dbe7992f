"""The Open Inference Protocol without a transport: the rules for tensor data, and the reply of each method."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.soak.damage import make_damaged
from evalmode import __version__
from evalmode.artifact.manifest import TensorManifest
from evalmode.artifact.publishing import publish
from evalmode.artifact.sealing import seal
from evalmode.artifact.tensors import ACTIVATION_MAP, DTYPES, LOGITS, PROBABILITIES
from evalmode.certification.certify import certify
from evalmode.errors import (
    BatchTooLarge,
    ContentsMismatch,
    ContentsMixed,
    ControlDisabled,
    DatatypeMismatch,
    DeadlineExpired,
    ImageUnreadable,
    ModelInvalid,
    ModelNotFound,
    ModelUnspecified,
    NotFinite,
    NotServed,
    ParameterInvalid,
    ProviderUnavailable,
    QueueFull,
    RequestCancelled,
    RequestError,
    ShapeMismatch,
    TensorDuplicate,
    TensorMissing,
    TensorUnknown,
)
from evalmode.images.headers import Header
from evalmode.images.pixels import PixelContract
from evalmode.limits import Limits
from evalmode.runtime.loading import LoadOptions, load_artifact
from evalmode.runtime.model import ImageClassifier, Model
from evalmode.wire import open_inference_pb2 as wire
from serving.services import inputs
from serving.services.figures import Counts
from serving.services.inference import Inference
from serving.services.models import Models
from serving.services.open_inference import OpenInference
from serving.services.source import Source
from serving.services.statistics import Statistics
from serving.transports.refusals import refuse
from tests.conformance.specification import NUMPY, TYPED
from tests.conftest import COLOURS, colour_artifact, encode, plain
from tests.serving.conftest import WAIT_S, BlockedModel, Caller, Direct, make_executor

RED, BLUE = (np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))


def serve(*models: Any, **options: Any) -> Direct:
    limits = options.pop("limits", Limits())
    statistics = Statistics()
    executor = options.pop("executor", None) or make_executor(1, limits, count_run=statistics.count_run)
    served = Models({model.name: (model,) for model in models}, Source(options.pop("repository", Path())))
    inference = Inference(executor, statistics)
    return Direct(OpenInference(served, inference, limits, **options), inference)


def ask(pixels: np.ndarray, **fields: Any) -> wire.ModelInferRequest:
    """A request with raw pixels, (N, 4, 4, 3)."""
    inputs = [{"name": "image", "datatype": "UINT8", "shape": pixels.shape}]
    return wire.ModelInferRequest(**{"inputs": inputs, "raw_input_contents": [pixels.tobytes()], **fields})


def ask_streamed(service: Direct, request: wire.ModelInferRequest) -> wire.ModelStreamInferResponse:
    """The reply of a stream to a request."""
    run = service.begin(request)
    return service.service.make_stream_reply(request, run.exception(WAIT_S) or run.result(), refuse)


def read(reply: wire.ModelInferResponse, name: str) -> np.ndarray:
    """Read a raw output of float32."""
    place = [output.name for output in reply.outputs].index(name)
    assert reply.outputs[place].datatype == "FP32"
    return np.frombuffer(reply.raw_output_contents[place], "<f4").reshape(reply.outputs[place].shape)


def split_elements(raw: bytes) -> list[bytes]:
    """Split a raw BYTES tensor into its split_elements."""
    found = []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return found


def pack(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def refusal(service: Direct, request: wire.ModelInferRequest, kind: type[RequestError]) -> tuple[str, str]:
    """The message and the field of a refusal."""
    with pytest.raises(kind) as caught:
        service.ask(request)
    return str(caught.value), caught.value.field


def tensor_artifact(dtype: str) -> bytes:
    """A certified network of tensors that adds and multiplies its two inputs, (N, 3) of ``dtype``."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = [helper.make_tensor_value_info(name, kind, ("batch", 3)) for name in ("left", "right", "sum", "product")]
    if dtype == "bool":
        nodes = [helper.make_node("Or", ["left", "right"], ["sum"])]
        nodes.append(helper.make_node("And", ["left", "right"], ["product"]))
    else:  # onnxruntime does not add all types
        wide = TensorProto.DOUBLE if dtype.startswith("float") else TensorProto.INT64
        nodes = [
            helper.make_node("Cast", ["left"], ["a"], to=wide),
            helper.make_node("Cast", ["right"], ["b"], to=wide),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("Mul", ["a", "b"], ["d"]),
            helper.make_node("Cast", ["c"], ["sum"], to=kind),
            helper.make_node("Cast", ["d"], ["product"], to=kind),
        ]
    graph = helper.make_graph(nodes, "sum", values[:2], values[2:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(proto)
    golden = {name: (np.arange(12).reshape(4, 3) % 2).astype(dtype) for name in ("left", "right")}
    return certify(proto, TensorManifest(), golden, ("",) * 4, difference=0.0)


def make_dynamic_model(dynamic_sides: int) -> Model:
    """A network that returns its input, float32 (N, side, ...), with ``dynamic_sides`` dynamic sides."""
    sides = ("batch", *(f"side{number}" for number in range(dynamic_sides)))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name in ("numbers", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["numbers"], ["same"])], "open", values[:1], values[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = LoadOptions(allow_uncertified=True)
    return load_artifact(seal(proto, TensorManifest()), name="open", version="1", options=options)


# Inference


class TestInfer:
    def test_returns_all_outputs_of_a_batch_with_the_bits_of_the_model(self, model: ImageClassifier) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
        reply = serve(model).ask(ask(pixels, id="seven", model_name="colours"))
        probabilities, logits = model.classify(pixels)
        assert (reply.model_name, reply.model_version, reply.id) == ("colours", "1", "seven")
        assert [output.name for output in reply.outputs] == [PROBABILITIES, LOGITS]
        assert read(reply, PROBABILITIES).tobytes() == probabilities.tobytes()
        assert read(reply, LOGITS).tobytes() == logits.tobytes()
        assert not any(output.HasField("contents") for output in reply.outputs)

    def test_returns_the_requested_outputs_in_their_order(self, model: ImageClassifier) -> None:
        wanted = [{"name": LOGITS}, {"name": PROBABILITIES}]
        reply = serve(model).ask(ask(RED[np.newaxis], outputs=wanted))
        assert [output.name for output in reply.outputs] == [LOGITS, PROBABILITIES]
        reply = serve(model).ask(ask(RED[np.newaxis], outputs=wanted[:1]))
        assert [output.name for output in reply.outputs] == [LOGITS]
        assert len(reply.raw_output_contents) == 1

    def test_typed_inputs_get_typed_outputs_of_the_same_values(self, model: ImageClassifier) -> None:
        pixels = np.stack([RED, BLUE])
        raw = serve(model).ask(ask(pixels))
        request = ask(pixels, raw_input_contents=[])
        request.inputs[0].contents.uint_contents.extend(pixels.ravel().tolist())
        typed = serve(model).ask(request)
        assert not typed.raw_output_contents
        for output in typed.outputs:
            assert np.array_equal(np.float32(output.contents.fp32_contents), read(raw, output.name).ravel())

    @pytest.mark.parametrize("shape", [(2,), (2, 1)])
    @pytest.mark.parametrize("raw", [True, False])
    def test_images_are_decoded_as_predict_decodes_them(
        self, model: ImageClassifier, shape: tuple[int, ...], raw: bool
    ) -> None:
        images = [encode(plain("red", (9, 7)), "JPEG"), encode(plain("blue"))]
        inputs = [{"name": "image", "datatype": "BYTES", "shape": shape}]
        request = wire.ModelInferRequest(inputs=inputs, raw_input_contents=[pack(*images)] if raw else [])
        if not raw:
            request.inputs[0].contents.bytes_contents.extend(images)
        reply = serve(model).ask(request)
        rows = [list(output.contents.fp32_contents) for output in reply.outputs if output.name == PROBABILITIES]
        probabilities = read(reply, PROBABILITIES) if raw else np.array(rows, np.float32).reshape(2, 3)
        for image, row in zip(images, probabilities, strict=True):
            scores = {score.index: score.probability for score in model.predict(image).scores}
            assert [scores[index] for index in range(3)] == row.tolist()

    def test_damaged_images_are_refused(self, model: ImageClassifier) -> None:
        inputs = [{"name": "image", "datatype": "BYTES", "shape": (1,)}]
        for one in (one for one in make_damaged(75) if one.is_corrupt()):
            with pytest.raises(ImageUnreadable):
                serve(model).ask(wire.ModelInferRequest(inputs=inputs, raw_input_contents=[pack(one.image)]))

    def test_classification_returns_value_index_and_label_of_the_top_k(self, model: ImageClassifier) -> None:
        wanted = [{"name": PROBABILITIES, "parameters": {"classification": {"int64_param": 2}}}]
        reply = serve(model).ask(ask(np.stack([RED, BLUE]), outputs=wanted))
        assert (reply.outputs[0].datatype, list(reply.outputs[0].shape)) == ("BYTES", [2, 2])
        scores = [text.decode().split(":") for text in split_elements(reply.raw_output_contents[0])]
        assert [(index, label) for _, index, label in scores] == [
            ("0", "red"),
            ("1", "green"),
            ("2", "blue"),
            ("0", "red"),
        ]
        assert float(scores[0][0]) == pytest.approx(model.classify(RED[np.newaxis])[0][0, 0], abs=1e-6)

    def test_classification_returns_at_most_all_labels(self, model: ImageClassifier) -> None:
        wanted = [{"name": LOGITS, "parameters": {"classification": {"int64_param": 99}}}]
        reply = serve(model).ask(ask(RED[np.newaxis], outputs=wanted))
        assert list(reply.outputs[0].shape) == [1, 3]

    def test_waiting_requests_run_as_one_batch(self, model: ImageClassifier) -> None:
        blocked = BlockedModel(model)
        service = serve(blocked)
        running = service.begin(ask(RED[np.newaxis]))
        blocked.next_batch()
        waiting = [service.begin(ask(np.stack([BLUE] * count))) for count in (2, 3)]
        assert service.inference.executor.load().waiting == 2
        blocked.release(2)
        assert len(blocked.next_batch()) == 5
        assert sorted(len(read(one.result(WAIT_S), LOGITS)) for one in (running, *waiting)) == [1, 2, 3]

    def test_a_model_with_max_batch_1_runs_a_batch_one_by_one(self, model: ImageClassifier) -> None:
        blocked = BlockedModel(replace(model, max_batch=1))
        blocked.release(3)
        service = serve(blocked)
        reply = service.ask(ask(np.stack([RED, BLUE, RED])))
        assert [len(blocked.next_batch()) for _ in range(3)] == [1, 1, 1]
        assert read(reply, LOGITS).argmax(1).tolist() == [0, 2, 0]
        [statistics] = service.service.model_statistics(wire.ModelStatisticsRequest(), Caller()).model_stats
        assert (statistics.inference_count, statistics.execution_count) == (3, 3)
        assert [(one.batch_size, one.compute_infer.count) for one in statistics.batch_stats] == [(1, 3)]

    def test_with_a_full_queue_is_refused_before_it_is_read(self, model: ImageClassifier) -> None:
        executor = make_executor(limits=Limits(max_queue=0))
        executor.admit(Caller(), print)
        with pytest.raises(QueueFull):
            serve(model, executor=executor).ask(ask(RED[np.newaxis], raw_input_contents=[b"short"]))


class TestOptionalOutputs:
    MAP: ClassVar[list[dict[str, str]]] = [{"name": ACTIVATION_MAP}]

    def test_are_returned_only_where_they_are_requested(self, mapped: ImageClassifier) -> None:
        service = serve(mapped)
        plain = service.ask(ask(RED[np.newaxis]))
        assert [output.name for output in plain.outputs] == [PROBABILITIES, LOGITS]
        reply = service.ask(ask(np.stack([RED, BLUE]), outputs=[*self.MAP, {"name": LOGITS}]))
        assert [output.name for output in reply.outputs] == [ACTIVATION_MAP, LOGITS]
        maps = read(reply, ACTIVATION_MAP)
        assert maps.shape == (2, 3, 4, 4)
        assert np.array_equal(maps.mean((2, 3)).argmax(1), [0, 2])
        assert np.allclose(maps.mean((2, 3)), read(reply, LOGITS))

    def test_in_typed_contents(self, mapped: ImageClassifier) -> None:
        request = ask(
            RED[np.newaxis], outputs=[{"name": ACTIVATION_MAP, "parameters": {"binary_data": {"bool_param": False}}}]
        )
        reply = serve(mapped).ask(request)
        assert list(reply.outputs[0].contents.fp32_contents) == [10.0] * 16 + [0.0] * 32

    def test_are_listed_only_in_the_properties(self, mapped: ImageClassifier) -> None:
        service = serve(mapped).service
        metadata = service.model_metadata(wire.ModelMetadataRequest(name="mapped"), Caller())
        config = service.model_config(wire.ModelConfigRequest(name="mapped"), Caller()).config
        assert [output.name for output in metadata.outputs] == [PROBABILITIES, LOGITS]
        assert [output.name for output in config.output] == [PROBABILITIES, LOGITS]
        expected = [{"name": ACTIVATION_MAP, "datatype": "FP32", "shape": [-1, 3, 4, 4]}]
        assert json.loads(metadata.properties["optional_outputs"]) == expected
        assert json.loads(config.parameters["optional_outputs"].string_value) == expected

    def test_an_unknown_output_is_refused_and_all_are_named(self, mapped: ImageClassifier) -> None:
        with pytest.raises(TensorUnknown, match="probabilities, logits, activation_map"):
            serve(mapped).ask(ask(RED[np.newaxis], outputs=[{"name": "map"}]))

    def test_are_not_computed_for_other_requests(self, mapped: ImageClassifier) -> None:
        broken = replace(mapped, optional=replace(mapped.optional, session=Broken()))
        service = serve(broken)
        assert read(service.ask(ask(RED[np.newaxis])), LOGITS).argmax() == 0
        with pytest.raises(RuntimeError, match="the second part ran"):
            service.ask(ask(RED[np.newaxis], outputs=self.MAP))


class Broken:
    """A session that cannot run."""

    def get_inputs(self) -> list[Any]:
        raise RuntimeError("the second part ran")


class TestParameters:
    def test_a_timeout_ends_the_wait_and_prevents_the_run(self, model: ImageClassifier) -> None:
        blocked = BlockedModel(model)
        service = serve(blocked)
        running = service.begin(ask(RED[np.newaxis]))
        blocked.next_batch()
        waiting = ask(BLUE[np.newaxis], parameters={"timeout": {"int64_param": 50_000}})
        with pytest.raises(DeadlineExpired, match="while waiting for a slot"):
            service.ask(waiting)  # although the slot is busy
        assert not running.done()
        blocked.release()
        assert running.result(WAIT_S)
        assert blocked.entered.empty()

    def test_a_timeout_longer_than_the_deadline_has_no_effect(self, model: ImageClassifier) -> None:
        request = ask(RED[np.newaxis], parameters={"timeout": {"uint64_param": 10**9}})
        with pytest.raises(DeadlineExpired):
            serve(model).ask(request, Caller(remaining_s=0))

    @pytest.mark.parametrize("timeout_us", [0, 60_000_000])
    def test_a_request_within_its_timeout_is_answered(self, model: ImageClassifier, timeout_us: int) -> None:
        request = ask(RED[np.newaxis], parameters={"timeout": {"int64_param": timeout_us}})
        assert read(serve(model).ask(request), LOGITS).argmax() == 0

    def test_the_final_response_is_marked_on_request(self, model: ImageClassifier) -> None:
        for wanted in (True, False):
            request = ask(RED[np.newaxis], parameters={"triton_enable_empty_final_response": {"bool_param": wanted}})
            reply = ask_streamed(serve(model), request).infer_response
            assert ("triton_final_response" in reply.parameters) is wanted
            assert reply.parameters["triton_final_response"].bool_param is wanted

    @pytest.mark.parametrize("sent_raw", [True, False])
    @pytest.mark.parametrize(
        ("of_all", "of_each", "raw"),
        [
            (None, (None, None), None),
            (True, None, True),
            (False, None, False),
            (True, (None, None), True),
            (None, (True, None), True),
            (None, (None, False), False),
            (True, (False, False), False),  # the parameter of an output has priority
            (False, (True,), True),
        ],
    )
    def test_outputs_are_raw_or_typed_as_requested_and_by_default_like_the_inputs(
        self,
        model: ImageClassifier,
        sent_raw: bool,
        of_all: bool | None,
        of_each: tuple[bool | None, ...] | None,
        raw: bool | None,
    ) -> None:
        request = ask(RED[np.newaxis])
        if not sent_raw:
            request.inputs[0].contents.uint_contents.extend(RED.ravel().tolist())
            del request.raw_input_contents[:]
        if of_all is not None:
            request.parameters["binary_data_output"].bool_param = of_all
        for name, wish in zip((PROBABILITIES, LOGITS), of_each or (), strict=False):
            output = request.outputs.add(name=name)
            if wish is not None:
                output.parameters["binary_data"].bool_param = wish
        reply = serve(model).ask(request)
        raw = sent_raw if raw is None else raw
        assert len(reply.outputs) == len(of_each or (1, 2))
        assert len(reply.raw_output_contents) == (len(reply.outputs) if raw else 0)
        assert [bool(output.contents.fp32_contents) for output in reply.outputs] == [not raw] * len(reply.outputs)

    def test_typed_contents_are_refused_for_a_type_that_has_none(self) -> None:
        inputs = [{"name": name, "datatype": "FP16", "shape": [1, 3]} for name in ("left", "right")]
        request = wire.ModelInferRequest(
            inputs=inputs,
            raw_input_contents=[bytes(6), bytes(6)],
            parameters={"binary_data_output": wire.InferParameter(bool_param=False)},
        )
        text, field = refusal(serve(load_artifact(tensor_artifact("float16"))), request, ParameterInvalid)
        assert (text, field) == ("output sum has no typed contents: request raw contents", "parameters")

    def test_the_parameter_binary_data_size_of_the_kserve_sdk_is_accepted(self, model: ImageClassifier) -> None:
        request = ask(RED[np.newaxis])
        request.inputs[0].parameters["binary_data_size"].int64_param = RED.nbytes
        assert serve(model).ask(request)


class TestTensors:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("raw", [True, False])
    def test_of_every_datatype_are_accepted_and_returned(self, dtype: str, raw: bool) -> None:
        [datatype] = [name for name, numpy_name in NUMPY.items() if numpy_name == dtype]
        left, right = (np.array(rows, dtype) for rows in ([[1, 0, 0], [1, 1, 0]], [[0, 0, 1], [0, 1, 1]]))
        request = wire.ModelInferRequest()
        for name, array in (("right", right), ("left", left)):
            sent = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            if raw or not TYPED[datatype]:
                request.raw_input_contents.append(array.tobytes())
            else:
                getattr(sent.contents, TYPED[datatype]).extend(array.ravel().tolist())
        reply = serve(load_artifact(tensor_artifact(dtype), name="sum", version="1")).ask(request)
        assert (reply.outputs[0].datatype, list(reply.outputs[0].shape)) == (datatype, [2, 3])
        if reply.raw_output_contents:
            sums = np.frombuffer(reply.raw_output_contents[0], dtype).reshape(2, 3)
        else:
            sums = np.array(getattr(reply.outputs[0].contents, TYPED[datatype]), dtype).reshape(2, 3)
        assert bool(reply.raw_output_contents) == (raw or datatype == "FP16")
        assert np.array_equal(sums, left + right)
        assert [output.name for output in reply.outputs] == ["sum", "product"]

    def test_with_nan_or_infinity_are_refused_unless_allowed(self) -> None:
        model = load_artifact(tensor_artifact("float32"), name="sum", version="1")
        for bad in (np.nan, np.inf, -np.inf):
            inputs = [{"name": name, "datatype": "FP32", "shape": [1, 3]} for name in ("left", "right")]
            contents = [np.array(row, np.float32).tobytes() for row in ([1, bad, 2], [1, 1, 1])]
            request = wire.ModelInferRequest(inputs=inputs, raw_input_contents=contents)
            assert refusal(serve(model), request, NotFinite)[0].startswith("left contains NaN or infinity")
            reply = serve(model, allow_nonfinite=True).ask(request)
            assert not np.isfinite(np.frombuffer(reply.raw_output_contents[0], "<f4")).all()

    def test_of_different_batches_are_refused(self) -> None:
        model = load_artifact(tensor_artifact("int8"), name="sum", version="1")
        inputs = [{"name": n, "datatype": "INT8", "shape": [c, 3]} for n, c in (("left", 1), ("right", 2))]
        request = wire.ModelInferRequest(inputs=inputs, raw_input_contents=[bytes(3), bytes(6)])
        assert refusal(serve(model), request, ShapeMismatch) == (
            "the inputs have different batch sizes: [1, 2]",
            "inputs",
        )

    @pytest.mark.parametrize(("dtype", "value"), [("int8", 128), ("int8", -129), ("uint8", 256), ("uint16", 2**16)])
    def test_with_typed_values_out_of_range_are_refused(self, dtype: str, value: int) -> None:
        model = load_artifact(tensor_artifact(dtype), name="sum", version="1")
        request = wire.ModelInferRequest()
        for name in ("left", "right"):
            sent = request.inputs.add(name=name, datatype=dtype.upper(), shape=[1, 3])
            getattr(sent.contents, TYPED[dtype.upper()]).extend([0, 0, value])
        assert refusal(serve(model), request, ContentsMismatch)[1] == "inputs[0].contents"


INVALID: dict[str, tuple[type[RequestError], dict[str, Any], str]] = {
    "no input": (TensorMissing, {"inputs": [], "raw_input_contents": []}, "inputs"),
    "an unknown input": (
        TensorUnknown,
        {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 4, 4, 3]}]},
        "inputs[0].name",
    ),
    "an input twice": (
        TensorDuplicate,
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 4, 4, 3]}] * 2},
        "inputs[1].name",
    ),
    "an unknown output": (TensorUnknown, {"outputs": [{"name": "scores"}]}, "outputs[0].name"),
    "an output twice": (TensorDuplicate, {"outputs": [{"name": LOGITS}, {"name": LOGITS}]}, "outputs[1].name"),
    "raw contents too short": (ContentsMismatch, {"raw_input_contents": [bytes(47)]}, "raw_input_contents"),
    "raw contents too long": (ContentsMismatch, {"raw_input_contents": [bytes(49)]}, "raw_input_contents"),
    "more raw contents than inputs": (ContentsMismatch, {"raw_input_contents": [bytes(48)] * 2}, "raw_input_contents"),
    "no contents at all": (ContentsMismatch, {"raw_input_contents": []}, "inputs[0].contents"),
    "a wrong shape": (
        ShapeMismatch,
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 4, 12, 1]}]},
        "inputs[0].shape",
    ),
    "a shape without the batch": (
        ShapeMismatch,
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [4, 4, 3]}]},
        "inputs[0].shape",
    ),
    "no shape": (ShapeMismatch, {"inputs": [{"name": "image", "datatype": "UINT8"}]}, "inputs[0].shape"),
    "a negative dimension": (
        ShapeMismatch,
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, -4, -4, 3]}]},
        "inputs[0].shape",
    ),
    "an empty batch": (
        ShapeMismatch,
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [0, 4, 4, 3]}], "raw_input_contents": [b""]},
        "inputs[0].shape",
    ),
    "a shape whose product exceeds 64 bits": (
        BatchTooLarge,
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [2**62, 4, 4, 3]}]},
        "inputs[0].shape",
    ),
    "another datatype": (
        DatatypeMismatch,
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 4, 4, 3]}]},
        "inputs[0].datatype",
    ),
    "no datatype": (
        DatatypeMismatch,
        {"inputs": [{"name": "image", "shape": [1, 4, 4, 3]}]},
        "inputs[0].datatype",
    ),
    "images of three dimensions": (
        ShapeMismatch,
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1, 1]}], "raw_input_contents": [pack(b"x")]},
        "inputs[0].shape",
    ),
    "images with a length beyond the end": (
        ContentsMismatch,
        {
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
            "raw_input_contents": [struct.pack("<I", 2**32 - 1) + b"x"],
        },
        "raw_input_contents",
    ),
    "images with trailing bytes": (
        ContentsMismatch,
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}], "raw_input_contents": [pack(b"x") + b"yz"]},
        "raw_input_contents",
    ),
    "fewer images than the shape": (
        ContentsMismatch,
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2]}], "raw_input_contents": [pack(b"x")]},
        "raw_input_contents",
    ),
    "bytes that are not an image": (
        ImageUnreadable,
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}], "raw_input_contents": [pack(b"none")]},
        "inputs[0][0]",
    ),
    "more images than the shape": (
        ContentsMismatch,
        {
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
            "raw_input_contents": [pack(b"x", b"y") + b"z"],
        },
        "raw_input_contents",
    ),
    "a sequence": (ParameterInvalid, {"parameters": {"sequence_id": {"int64_param": 7}}}, "parameters"),
    "a priority": (ParameterInvalid, {"parameters": {"priority": {"uint64_param": 1}}}, "parameters"),
    "an unknown parameter of an input": (
        ParameterInvalid,
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 4, 4, 3],
                    "parameters": {"content_type": {"string_param": "np"}},
                }
            ]
        },
        "inputs[0].parameters",
    ),
    "an unknown parameter of an output": (
        ParameterInvalid,
        {"outputs": [{"name": LOGITS, "parameters": {"binary_data_size": {"int64_param": 12}}}]},
        "outputs[0].parameters",
    ),
    "binary_data as a string": (
        ParameterInvalid,
        {"outputs": [{"name": LOGITS, "parameters": {"binary_data": {"string_param": "true"}}}]},
        "outputs[0].parameters",
    ),
    "binary_data_output as an integer": (
        ParameterInvalid,
        {"parameters": {"binary_data_output": {"int64_param": 1}}},
        "parameters",
    ),
    "one output raw and one typed": (
        ParameterInvalid,
        {
            "outputs": [
                {"name": LOGITS, "parameters": {"binary_data": {"bool_param": True}}},
                {"name": PROBABILITIES, "parameters": {"binary_data": {"bool_param": False}}},
            ]
        },
        "outputs[1].parameters",
    ),
    "an output that contradicts binary_data_output": (
        ParameterInvalid,
        {
            "parameters": {"binary_data_output": {"bool_param": True}},
            "outputs": [
                {"name": LOGITS, "parameters": {"binary_data": {"bool_param": False}}},
                {"name": PROBABILITIES},
            ],
        },
        "parameters",
    ),
    "binary_data of an input": (
        ParameterInvalid,
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 4, 4, 3],
                    "parameters": {"binary_data": {"bool_param": True}},
                }
            ]
        },
        "inputs[0].parameters",
    ),
    "a timeout as a string": (ParameterInvalid, {"parameters": {"timeout": {"string_param": "1 s"}}}, "parameters"),
    "a negative timeout": (ParameterInvalid, {"parameters": {"timeout": {"int64_param": -1}}}, "parameters"),
    "a classification of no labels": (
        ParameterInvalid,
        {"outputs": [{"name": LOGITS, "parameters": {"classification": {"int64_param": 0}}}]},
        "outputs[0].parameters",
    ),
    "an input in shared memory": (
        NotServed,
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, 4, 4, 3],
                    "parameters": {"shared_memory_region": {"string_param": "x"}},
                }
            ]
        },
        "inputs[0].parameters",
    ),
    "an output in shared memory": (
        NotServed,
        {"outputs": [{"name": LOGITS, "parameters": {"shared_memory_region": {"string_param": "x"}}}]},
        "outputs[0].parameters",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_request_is_refused_with_its_field(model: ImageClassifier, case: str) -> None:
    kind, fields, field = INVALID[case]
    text, refused_field = refusal(serve(model), ask(RED[np.newaxis], **fields), kind)
    assert refused_field == field
    assert text


def test_a_shape_too_large_for_an_array_is_refused_although_its_contents_match() -> None:
    model = make_dynamic_model(2)
    for sides in ([2**62, 0], [0, 2**31], [2**31 - 1, 2**31 - 1]):
        request = wire.ModelInferRequest(
            inputs=[{"name": "numbers", "datatype": "FP32", "shape": [1, *sides]}], raw_input_contents=[b""]
        )
        assert refusal(serve(model), request, ShapeMismatch)[1] == "inputs[0].shape"


def test_images_beyond_the_shape_are_not_read(model: ImageClassifier) -> None:
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [1]}]
    request = wire.ModelInferRequest(inputs=inputs, raw_input_contents=[bytes(4 * 10**6) + b"z"])
    assert refusal(serve(model), request, ContentsMismatch)[0] == "image with shape 1 needs 1 elements, got more"


def test_the_field_names_the_unreadable_image_of_several(model: ImageClassifier) -> None:
    images = [encode(plain("red")), encode(plain("blue")), b"none"]
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [3]}]
    request = wire.ModelInferRequest(inputs=inputs, raw_input_contents=[pack(*images)])
    assert refusal(serve(model), request, ImageUnreadable)[1] == "inputs[0][2]"


def test_no_further_image_is_decoded_after_a_cancellation(model: ImageClassifier) -> None:
    caller, decoded, images = Caller(), [], [encode(plain(colour)) for colour in ("red", "green", "blue")]

    def decode(header: Header, contract: PixelContract) -> np.ndarray:
        decoded.append(header.image)
        caller.cancel()
        return RED

    inputs = [{"name": "image", "datatype": "BYTES", "shape": [3]}]
    request = wire.ModelInferRequest(inputs=inputs, raw_input_contents=[pack(*images)])
    with patch("serving.services.inputs.decode_requested", decode), pytest.raises(RequestCancelled):
        serve(model).ask(request, caller)
    assert decoded == images[:1]


def test_raw_and_typed_contents_in_one_request_are_refused(model: ImageClassifier) -> None:
    request = ask(RED[np.newaxis])
    request.inputs[0].contents.uint_contents.extend([0] * 48)
    assert refusal(serve(model), request, ContentsMixed)[1] == "inputs[0].contents"


def test_typed_contents_of_another_type_are_refused(model: ImageClassifier) -> None:
    request = ask(RED[np.newaxis], raw_input_contents=[])
    request.inputs[0].contents.int_contents.extend([0] * 48)
    text, _ = refusal(serve(model), request, ContentsMixed)
    assert text == "image has datatype UINT8, whose values belong in uint_contents; got int_contents"


def test_half_precision_has_no_typed_contents() -> None:
    model = load_artifact(tensor_artifact("float16"), name="sum", version="1")
    request = wire.ModelInferRequest()
    for name in ("left", "right"):
        sent = request.inputs.add(name=name, datatype="FP16", shape=[1, 3])
        sent.contents.fp32_contents.extend([1, 2, 3])
    assert refusal(serve(model), request, ContentsMixed)[0] == "FP16 has no typed contents: send raw contents"


def test_a_batch_over_the_limit_is_refused_with_both_sizes(model: ImageClassifier) -> None:
    service = serve(model, limits=Limits(max_batch=2))
    with pytest.raises(BatchTooLarge) as caught:
        service.ask(ask(np.stack([RED] * 3)))
    assert caught.value.facts == {"size_inputs": "3", "limit_inputs": "2"}
    assert len(read(service.ask(ask(np.stack([RED] * 2))), LOGITS)) == 2


# Metadata


def test_server_metadata_has_name_version_and_extensions(model: ImageClassifier) -> None:
    metadata = serve(model).service.server_metadata(wire.ServerMetadataRequest(), Caller())
    assert (metadata.name, metadata.version) == ("evalmode", __version__)
    assert {"classification", "model_configuration", "model_repository", "statistics"} == set(metadata.extensions)


def test_model_metadata_has_tensors_and_properties(model: ImageClassifier) -> None:
    metadata = serve(model).service.model_metadata(wire.ModelMetadataRequest(name="colours"), Caller())
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("colours", ["1"], "onnx_onnxv1")
    tensors = {one.name: (one.datatype, list(one.shape)) for one in (*metadata.inputs, *metadata.outputs)}
    assert tensors == {"image": ("UINT8", [-1, 4, 4, 3]), PROBABILITIES: ("FP32", [-1, 3]), LOGITS: ("FP32", [-1, 3])}
    facts = {name: json.loads(value) for name, value in metadata.properties.items()}
    assert facts["labels"] == list(COLOURS)
    assert facts["digest"] == model.digest
    assert facts["certificate"] == {"golden": 16, "tolerance": 1e-4}
    assert (facts["batch_invariant"], facts["provider"], facts["network"]) == (True, "CPU", "colours")


def test_golden_images_are_not_in_the_metadata(model: ImageClassifier) -> None:
    assert model.manifest.certificate is not None
    service = serve(model)
    sent = service.service.model_metadata(wire.ModelMetadataRequest(), Caller()).SerializeToString()
    sent += service.service.model_config(wire.ModelConfigRequest(), Caller()).SerializeToString()
    packed = json.dumps(model.manifest.certificate.to_json())
    assert len(sent) < 3_000 < len(packed)


def test_model_config_has_batch_size_tensors_and_labels(model: ImageClassifier) -> None:
    config = (
        serve(model, limits=Limits(max_batch=32))
        .service.model_config(wire.ModelConfigRequest(name="colours"), Caller())
        .config
    )
    assert (config.name, config.platform, config.backend, config.max_batch_size) == (
        "colours",
        "onnx_onnxv1",
        "onnxruntime",
        32,
    )
    [image] = config.input
    assert (image.name, image.data_type, list(image.dims), image.format) == ("image", 2, [4, 4, 3], 1)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [
        (PROBABILITIES, 11, [3]),
        (LOGITS, 11, [3]),
    ]
    assert json.loads(config.parameters["labels"].string_value) == list(COLOURS)


def test_only_served_models_are_ready(model: ImageClassifier) -> None:
    service = serve(model)
    wanted = {("colours", ""): True, ("colours", "1"): True, ("colours", "2"): False, ("other", ""): False}
    for (name, version), ready in wanted.items():
        reply = service.service.model_ready(wire.ModelReadyRequest(name=name, version=version), Caller())
        assert reply.ready is ready


@pytest.mark.parametrize("call", ["model_metadata", "model_config", "model_statistics"])
def test_a_model_that_is_not_served_is_not_found(model: ImageClassifier, call: str) -> None:
    service = serve(model)
    request = {"model_metadata": wire.ModelMetadataRequest, "model_config": wire.ModelConfigRequest}.get(
        call, wire.ModelStatisticsRequest
    )
    with pytest.raises(ModelNotFound):
        getattr(service.service, call)(request(name="other"), Caller())
    with pytest.raises(ModelNotFound):
        service.ask(ask(RED[np.newaxis], model_name="other"))
    with pytest.raises(ModelNotFound):
        service.ask(ask(RED[np.newaxis], model_version="2"))


def test_with_several_models_a_request_must_name_one(model: ImageClassifier) -> None:
    with pytest.raises(ModelUnspecified):
        serve(model, replace(model, name="other")).ask(ask(RED[np.newaxis]))


@pytest.mark.parametrize(
    ("call", "request_", "field"),
    [
        ("find", wire.ModelInferRequest(), "model_name"),
        ("model_metadata", wire.ModelMetadataRequest(), "name"),
        ("model_config", wire.ModelConfigRequest(), "name"),
    ],
)
def test_a_missing_model_name_is_refused_with_its_field(
    model: ImageClassifier, call: str, request_: object, field: str
) -> None:
    with pytest.raises(ModelUnspecified) as caught:
        getattr(serve(model, replace(model, name="other")).service, call)(
            request_, *([] if call == "find" else [Caller()])
        )
    assert caught.value.field == field


@pytest.mark.parametrize(
    "name",
    [
        "SystemSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "TraceSetting",
        "LogSettings",
    ],
)
def test_unsupported_methods_are_refused_with_not_served(model: ImageClassifier, name: str) -> None:
    with pytest.raises(NotServed, match="shared memory, tracing or log settings"):
        serve(model).service.handlers[name](None, Caller())


# Statistics


def test_statistics_count_answers_runs_and_refusals(model: ImageClassifier) -> None:
    service = serve(model)
    for count in (1, 3, 3):
        service.ask(ask(np.stack([RED] * count)))
    for _ in range(2):
        with pytest.raises(ContentsMismatch):
            service.ask(ask(RED[np.newaxis], raw_input_contents=[b""]))
    [statistics] = service.service.model_statistics(wire.ModelStatisticsRequest(), Caller()).model_stats
    assert (statistics.name, statistics.version, statistics.inference_count, statistics.execution_count) == (
        "colours",
        "1",
        7,
        3,
    )
    assert statistics.last_inference > 1_700_000_000_000
    spent = statistics.inference_stats
    assert [one.count for one in (spent.success, spent.queue, spent.compute_input, spent.compute_infer)] == [3] * 4
    assert spent.fail.count == 2
    assert spent.success.ns == spent.queue.ns + spent.compute_input.ns + spent.compute_infer.ns > 0
    assert [(one.batch_size, one.compute_infer.count) for one in statistics.batch_stats] == [(1, 1), (3, 2)]


def test_statistics_are_those_of_the_whole_server(model: ImageClassifier) -> None:
    direct, counts = serve(model), Counts(last_ms=7, inputs=40)
    models, inference = direct.service._models, direct.inference
    service = OpenInference(models, inference, Limits(), read_counts=lambda: {("colours", "1"): counts})
    [statistics] = service.model_statistics(wire.ModelStatisticsRequest(name="colours"), Caller()).model_stats
    assert (statistics.name, statistics.last_inference, statistics.inference_count) == ("colours", 7, 40)


def test_an_error_on_a_stream_has_reason_and_message(model: ImageClassifier) -> None:
    service, request = serve(model), ask(RED[np.newaxis], id="seven", model_name="nobody")
    reply = ask_streamed(service, request)
    assert reply.error_message.startswith("Request for unknown model: 'nobody'")
    assert reply.infer_response.id == "seven"
    assert reply.infer_response.parameters["evalmode_reason"].string_param == "MODEL_NOT_FOUND"
    with patch.object(inputs, "_check_names", side_effect=ZeroDivisionError):
        reply = ask_streamed(service, ask(RED[np.newaxis]))
    assert reply.infer_response.parameters["evalmode_reason"].string_param == "INTERNAL"
    error_id = reply.infer_response.parameters["evalmode_id"].string_param
    assert reply.error_message == f"internal error {error_id}: the server's log has the cause under this id"


def test_a_fault_of_the_server_counts_as_a_failure(model: ImageClassifier) -> None:
    service = serve(model)
    with patch.object(inputs, "_check_names", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
        service.ask(ask(RED[np.newaxis]))
    [statistics] = service.service.model_statistics(wire.ModelStatisticsRequest(), Caller()).model_stats
    assert statistics.inference_stats.fail.count == 1


def test_after_announce_shutdown_nothing_is_ready_and_requests_are_answered(model: ImageClassifier) -> None:
    service = serve(model)
    service.service.announce_shutdown()
    assert not service.service.handlers["ServerReady"](wire.ServerReadyRequest(), Caller()).ready
    assert not service.service.model_ready(wire.ModelReadyRequest(name="colours"), Caller()).ready
    assert service.service.handlers["ServerLive"](wire.ServerLiveRequest(), Caller()).live
    assert service.ask(ask(RED[np.newaxis]))


# The repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path, "colours", colour_artifact())
    publish(tmp_path, "colours", colour_artifact(("rot", "grün", "blau")))
    publish(tmp_path, "other", colour_artifact())
    return tmp_path


def controlled(repository: Path) -> Direct:
    models, inference = Models.open(repository), Inference(make_executor(), Statistics())
    return Direct(OpenInference(models, inference, Limits(), enable_control=True), inference)


def index(service: Direct, ready: bool = False) -> list[tuple[str, str, str, str]]:
    entries = service.service.repository_index(wire.RepositoryIndexRequest(ready=ready), Caller()).models
    return [(one.name, one.version, one.state, one.reason) for one in entries]


def test_the_index_lists_every_version_and_why_one_is_unavailable(repository: Path) -> None:
    service = controlled(repository)
    assert index(service) == [
        ("colours", "1", "UNAVAILABLE", "version 2 is served"),
        ("colours", "2", "READY", ""),
        ("other", "1", "READY", ""),
    ]
    assert index(service, ready=True) == [("colours", "2", "READY", ""), ("other", "1", "READY", "")]


def test_the_index_lists_served_versions_whose_folder_was_removed(repository: Path) -> None:
    service = controlled(repository)
    shutil.rmtree(repository / "colours" / "2")
    assert ("colours", "2", "READY", "") in index(service)
    shutil.rmtree(repository)
    assert index(service) == [("colours", "2", "READY", ""), ("other", "1", "READY", "")]


def test_a_model_is_unloaded_and_loaded_again(repository: Path) -> None:
    service = controlled(repository)
    service.service.unload(wire.RepositoryModelUnloadRequest(model_name="colours"), Caller())
    assert ("colours", "2", "UNAVAILABLE", "unloaded by a call") in index(service)
    assert not service.service.model_ready(wire.ModelReadyRequest(name="colours"), Caller()).ready
    with pytest.raises(ModelNotFound):
        service.ask(ask(RED[np.newaxis], model_name="colours"))
    assert service.service.load(wire.RepositoryModelLoadRequest(model_name="colours"), Caller()).ByteSize() == 0
    assert service.ask(ask(RED[np.newaxis], model_name="colours")).model_version == "2"


def test_loading_serves_the_newest_version(repository: Path) -> None:
    service = controlled(repository)
    publish(repository, "colours", colour_artifact())
    assert service.ask(ask(RED[np.newaxis], model_name="colours")).model_version == "2"
    service.service.load(wire.RepositoryModelLoadRequest(model_name="colours"), Caller())
    assert service.ask(ask(RED[np.newaxis], model_name="colours")).model_version == "3"


def test_requests_with_the_model_name_in_field_1_are_supported(repository: Path) -> None:
    service = controlled(repository)
    request = wire.RepositoryModelUnloadRequest.FromString(b"\n\x07colours")  # the KServe SDK's model_name = 1
    service.service.unload(request, Caller())
    assert not service.service.model_ready(wire.ModelReadyRequest(name="colours"), Caller()).ready
    service.service.load(wire.RepositoryModelLoadRequest.FromString(b"\n\x07colours"), Caller())
    assert service.service.model_ready(wire.ModelReadyRequest(name="colours"), Caller()).ready


def test_the_old_version_stays_served_if_the_new_one_cannot_be_loaded(repository: Path) -> None:
    service = controlled(repository)
    publish(repository, "colours", b"no artifact")
    with pytest.raises(ModelInvalid, match="colours/3 cannot be loaded"):
        service.service.load(wire.RepositoryModelLoadRequest(model_name="colours"), Caller())
    assert service.ask(ask(RED[np.newaxis], model_name="colours")).model_version == "2"


def test_the_old_version_stays_served_if_the_new_one_needs_a_missing_provider(repository: Path) -> None:
    service = controlled(repository)
    with (
        patch("evalmode.runtime.loading.load_model", side_effect=ProviderUnavailable("no CUDA")),
        pytest.raises(ModelInvalid, match="colours/2 cannot be loaded: no CUDA"),
    ):
        service.service.load(wire.RepositoryModelLoadRequest(model_name="colours"), Caller())
    assert service.ask(ask(RED[np.newaxis], model_name="colours")).model_version == "2"


@pytest.mark.parametrize("name", ["", "nobody", "..", "../models", "/etc", ".incoming-x"])
def test_a_name_that_is_not_in_the_repository_is_not_found(repository: Path, name: str) -> None:
    for call, kind in (("load", wire.RepositoryModelLoadRequest), ("unload", wire.RepositoryModelUnloadRequest)):
        with pytest.raises(ModelNotFound):
            getattr(controlled(repository).service, call)(kind(model_name=name), Caller())


def test_parameters_of_other_servers_are_refused(repository: Path) -> None:
    request = wire.RepositoryModelLoadRequest(
        model_name="colours", parameters={"config": wire.ModelRepositoryParameter(string_param="{}")}
    )
    with pytest.raises(ParameterInvalid, match="parameters config are not supported; supported: unload_dependents"):
        controlled(repository).service.load(request, Caller())


def test_without_control_nothing_is_loaded_or_unloaded(model: ImageClassifier) -> None:
    service = serve(model)
    for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
        with pytest.raises(ControlDisabled, match="--enable-control"):
            service.service.handlers[name](wire.RepositoryModelLoadRequest(model_name="colours"), Caller())
