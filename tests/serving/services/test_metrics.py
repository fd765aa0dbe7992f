"""The exact metrics of a real server after a known load."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client.parser import text_string_to_metric_families

from evalmode.artifact.image_statistics import MOMENTS, describe_images
from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.publishing import publish
from evalmode.artifact.sealing import seal
from evalmode.artifact.tensors import INPUT
from evalmode.certification.certify import certify, draw_golden
from evalmode.client import CallFailed, Client
from evalmode.images.pixels import PixelContract
from evalmode.wire import classifier_pb2, classifier_pb2_grpc
from evalmode.wire import open_inference_pb2 as wire
from evalmode.wire import open_inference_pb2_grpc as wire_grpc
from serving.services.drift import LIMIT, WINDOW
from serving.services.metrics import METRICS, MIN_IMAGES
from tests.conftest import COLOURS, Server, colour_artifact, colour_graph, encode, plain, serving
from tests.serving.conftest import WAIT_S, wait_until

RED, GREEN = encode(plain("red")), encode(plain((0, 255, 0)))
PIXELS = np.full((3, 4, 4, 3), (0, 0, 255), np.uint8)

Samples = dict[tuple[str, ...], float]


@pytest.fixture
def fresh(colours: Path) -> Iterator[Server]:
    """A server that has received no request."""
    with serving(colours) as running:
        yield running


def get(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.metrics}{path}", timeout=WAIT_S) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(server: Server) -> Callable[[str], Samples]:
    """Scrape the metrics: a function from a name to its samples by label values, in the documented order of labels."""
    status, text = get(server, "/metrics")
    assert status == 200
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(text):
        known = METRICS.get(family.name) or METRICS.get(f"{family.name}_total")
        for sample in family.samples:
            names = (*known.labels, "le") if known else ()
            labels = tuple(sample.labels[name] for name in names if name in sample.labels)
            found.setdefault(sample.name, {})[labels] = sample.value
    return lambda name: found.get(name, {})


def infer(channel: grpc.Channel, batch: np.ndarray, model: str = "") -> wire.ModelInferResponse:
    tensor = wire.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=batch.shape)
    request = wire.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[batch.tobytes()])
    return wire_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=WAIT_S)


def test_counts_match_a_known_load(fresh: Server) -> None:
    with Client(fresh.address) as client, grpc.insecure_channel(fresh.address) as channel:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(client.predict, [RED] * 7 + [GREEN] * 5))
        infer(channel, PIXELS)
        for _ in range(2):
            with pytest.raises(CallFailed, match="not an image"):
                client.predict(b"not an image")
        with pytest.raises(CallFailed):
            client.predict(RED, model="nobody")
        with pytest.raises(grpc.RpcError):
            infer(channel, PIXELS[:, :2])
        stream = wire_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(
            iter([wire.ModelInferRequest(model_name="colours")])
        )
        assert next(stream).error_message
    read = scrape(fresh)
    one = ("colours", "1")
    assert read("evalmode_requests_total") == {
        (*one, "OK", ""): 13,
        (*one, "INVALID_ARGUMENT", "IMAGE_UNREADABLE"): 2,
        (*one, "INVALID_ARGUMENT", "SHAPE_MISMATCH"): 1,
        (*one, "INVALID_ARGUMENT", "TENSOR_MISSING"): 1,
        (*one, "INTERNAL", "INTERNAL"): 0,  # exists from the start: otherwise Prometheus would miss the first increase
        ("", "", "INTERNAL", "INTERNAL"): 0,
        ("", "", "NOT_FOUND", "MODEL_NOT_FOUND"): 1,
    }
    assert read("evalmode_inputs_total") == {one: 15}
    assert read("evalmode_predictions_total") == {(*one, "red"): 7, (*one, "green"): 5, (*one, "blue"): 3}
    for name in ("decode", "wait", "inference", "request"):
        assert read(f"evalmode_{name}_seconds_count") == {one: 13}
        buckets = [count for (*_, _bound), count in read(f"evalmode_{name}_seconds_bucket").items()]
        assert buckets == sorted(buckets)
        assert buckets[-1] == 13
    spent = {name: read(f"evalmode_{name}_seconds_sum")[one] for name in ("decode", "wait", "inference", "request")}
    assert spent["request"] == pytest.approx(spent["decode"] + spent["wait"] + spent["inference"])
    assert read("evalmode_batch_size_sum") == {one: 15}
    assert read("evalmode_ready") == {(): 1}
    assert read("evalmode_model_ready") == {one: 1}
    [info] = read("evalmode_model_info")
    assert info[:2] + info[3:] == ("colours", "1", "CPU", "true", "true")
    assert info[2].startswith("sha256:")
    for name in ("slots_busy", "requests_waiting", "requests_in_flight"):
        assert read(f"evalmode_{name}") == {(): 0}
    assert read("evalmode_slots")[()] >= 1
    assert read("process_resident_memory_bytes")[()] > 1e6


def test_the_metrics_are_those_of_the_table(fresh: Server) -> None:
    _, text = get(fresh, "/metrics")
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    families_of_evalmode = {name: kind for name, kind in families.items() if name.startswith("evalmode_")}
    assert families_of_evalmode == {name.removesuffix("_total"): one.kind for name, one in METRICS.items()}


def test_requests_in_flight_are_measured(tmp_path: Path) -> None:
    publish(tmp_path, "slow", colour_artifact(slow_steps=1500))
    with serving(tmp_path, "--allow-uncertified") as server, grpc.insecure_channel(server.address) as channel:
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        calls = [stub.Predict.future(classifier_pb2.PredictRequest(image=RED), timeout=60) for _ in range(12)]

        def all_are_measured() -> bool:
            read = scrape(server)
            names = ("slots", "slots_busy", "requests_waiting", "requests_in_flight")
            slots, busy, waiting, in_flight = (read(f"evalmode_{name}")[()] for name in names)
            return bool(busy == slots and waiting and in_flight == 12)

        wait_until(all_are_measured)
        for call in calls:
            call.cancel()


def test_readiness_of_each_version_is_measured(tmp_path: Path) -> None:
    publish(tmp_path, "colours", colour_artifact())
    with serving(tmp_path, "--poll", "0.05") as server:
        publish(tmp_path, "colours", b"no artifact")
        ready = {("colours", "1"): 1, ("colours", "2"): 0}
        wait_until(lambda: scrape(server)("evalmode_model_ready") == ready)


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/healthz", "/livez", "/nowhere"])
def test_head_has_the_headers_of_get_and_no_body(fresh: Server, path: str) -> None:
    replies = {}
    for method in ("GET", "HEAD"):
        with closing(http.client.HTTPConnection(fresh.metrics, timeout=WAIT_S)) as connection:
            connection.request(method, path)
            reply = connection.getresponse()
            replies[method] = (reply.status, reply.headers["Content-Type"])
            body, length = reply.read(), int(reply.headers["Content-Length"])
            assert length > 0
            assert len(body) == (length if method == "GET" else 0)
    assert replies["HEAD"] == replies["GET"]


MANY = 20_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a classifier of 20,000 labels: the two pixels of an image are the digits of its label."""
    repository, contract = tmp_path_factory.mktemp("many"), PixelContract(1, 2, 1)
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "rows"], ["digits"]),
        helper.make_node("MatMul", ["digits", "powers"], ["number"]),
        helper.make_node("Sub", ["number", "numbers"], ["distances"]),
        helper.make_node("Abs", ["distances"], ["sizes"]),
        helper.make_node("Neg", ["sizes"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    constants = {
        "rows": np.array([-1, 2]),
        "powers": np.array([[256], [1]], np.float32),
        "numbers": np.arange(MANY, dtype=np.float32)[np.newaxis],
    }
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ("batch", MANY)) for n in ("probabilities", "logits")
    ]
    graph = helper.make_graph(
        nodes,
        "many",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ("batch", 1, 2, 1))],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    labels = tuple(f"label {number}" for number in range(MANY))
    publish(repository, "many", seal(onnx_model, ClassifierManifest(labels, contract, {})))
    return repository


def show(channel: grpc.Channel, *numbers: int) -> None:
    """Request the label of each number."""
    infer(channel, np.array([divmod(number, 256) for number in numbers], np.uint8).reshape(-1, 1, 2, 1))


@pytest.mark.parametrize(
    ("limit", "shown"),
    [
        (1000, {"label 19999": 2, "label 7": 2, "label 0": 1, "label 300": 1}),
        (2, {"label 19999": 2, "label 7": 2, "(other)": 2}),
        (0, {"(other)": 6}),
    ],
)
def test_a_label_has_a_counter_from_its_first_prediction_on_up_to_the_limit(
    many: Path, limit: int, shown: dict[str, int]
) -> None:
    with serving(many, "--allow-uncertified", "--label-metrics", limit) as server:
        assert len(get(server, "/metrics")[1]) < 30_000
        with grpc.insecure_channel(server.address) as channel:
            for numbers in ((19_999,), (7, 7), (0, 19_999), (300,)):
                show(channel, *numbers)
        counted = scrape(server)("evalmode_predictions_total")
        assert counted == {("many", "1", label): count for label, count in shown.items()}


def test_a_label_that_is_not_valid_unicode_is_escaped(tmp_path: Path) -> None:
    publish(tmp_path, "colours", colour_artifact(("\ud800", "green", "blue")))
    with serving(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        infer(channel, np.full((1, 4, 4, 3), (255, 0, 0), np.uint8))
        assert scrape(server)("evalmode_predictions_total") == {("colours", "1", "\\ud800"): 1}


def test_an_answer_that_cannot_be_sent_is_counted_once(tmp_path: Path) -> None:
    publish(tmp_path, "colours", colour_artifact(("\ud800", "green", "blue")))
    request = classifier_pb2.PredictRequest(image=encode(plain("red")))
    with serving(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as failed:  # protobuf cannot encode the label
            classifier_pb2_grpc.ClassifierStub(channel).Predict(request, timeout=WAIT_S)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        counted = scrape(server)("evalmode_requests_total")
        assert sum(counted.values()) == 1


def test_a_client_that_resets_its_connection_is_not_logged(fresh: Server) -> None:
    for _ in range(3):
        host, port = fresh.metrics.split(":")
        with closing(socket.create_connection((host, int(port)))) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * 50)
    assert get(fresh, "/healthz")[0] == 200
    assert fresh.stop()[0] == 0
    assert "Traceback" not in fresh.logged()


def test_health_over_http(fresh: Server) -> None:
    for path in ("/readyz", "/healthz", "/livez"):
        assert get(fresh, path) == (200, "ok\n")
    assert get(fresh, "/") == (404, "not found: use /metrics, /readyz, /healthz or /livez\n")


def test_health_over_http_is_not_ready_during_shutdown(colours: Path) -> None:
    with serving(colours, "--lame-duck", "20") as server:
        server.process.terminate()
        wait_until(lambda: get(server, "/healthz") == (503, "not ready\n"))
        assert get(server, "/readyz") == (503, "draining\n")
        assert scrape(server)("evalmode_ready") == {(): 0}
        assert get(server, "/livez") == (200, "ok\n")


def test_a_metrics_port_in_use_is_reported(colours: Path, fresh: Server, evalmode) -> None:
    port = fresh.metrics.rpartition(":")[2]
    refused = evalmode("serve", "--repository", colours, "--port", 0, "--metrics-port", port)
    assert refused.returncode == 2
    assert f"metrics cannot listen on 127.0.0.1:{port}: the port is in use" in refused.stderr


def test_no_metrics_disables_the_metrics_port(colours: Path) -> None:
    with serving(colours, "--no-metrics") as server:
        assert server.metrics == "127.0.0.1:metrics"  # no port


def publish_drawn(repository: Path) -> np.ndarray:
    """Publish an artifact with the moments of training images, and return these images."""
    chance = np.random.default_rng(0)
    images = chance.integers(0, 200, (WINDOW, 4, 4, 3)).astype(np.uint8)
    contract = PixelContract(4, 4, 3)
    manifest = ClassifierManifest(COLOURS, contract, {"moments": {"images": describe_images(images)}})
    golden = draw_golden(contract, 3)
    publish(
        repository, "colours", certify(colour_graph(), manifest, {INPUT: golden}, ("",) * len(golden), difference=0.0)
    )
    return images


class TestDrift:
    @pytest.fixture
    def drawn(self, tmp_path: Path) -> np.ndarray:
        """The training images of the artifact in ``tmp_path``."""
        return publish_drawn(tmp_path)

    @pytest.mark.parametrize(("change", "flagged"), [(0, 0), (40, 1)])
    def test_is_measured_on_the_most_recent_images(
        self, tmp_path: Path, drawn: np.ndarray, change: int, flagged: int
    ) -> None:
        with serving(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
            infer(channel, drawn[: MIN_IMAGES - 1][:64])
            infer(channel, drawn[64 : MIN_IMAGES - 1])
            assert scrape(server)("evalmode_input_drifted") == {}
            changed = (drawn + change).astype(np.uint8)
            with Client(server.address) as client:
                for image in changed:  # replaces all earlier images of the window
                    client.predict_pixels(image)
            read = scrape(server)
        assert read("evalmode_input_drifted") == {("colours", "1"): flagged}
        drift = read("evalmode_input_drift")
        assert set(drift) == {("colours", "1", moment, str(channel)) for moment in MOMENTS for channel in range(3)}
        assert (max(map(abs, drift.values())) > LIMIT) == bool(flagged)

    def test_is_absent_if_the_artifact_has_no_moments(self, fresh: Server) -> None:
        with grpc.insecure_channel(fresh.address) as channel:
            for _ in range(4):
                infer(channel, np.zeros((64, 4, 4, 3), np.uint8))
        assert scrape(fresh)("evalmode_input_drift") == {}


class TestLog:
    @pytest.mark.parametrize("form", ["text", "json"])
    def test_has_one_line_per_request_at_level_debug(self, colours: Path, form: str) -> None:
        with serving(colours, "--log-level", "debug", "--log-format", form) as server, Client(server.address) as client:
            client.predict(RED)
            with pytest.raises(CallFailed) as caught:
                client.predict(b"secret bytes")
            assert caught.value.id
            _, logged = server.stop()
        assert "secret bytes" not in logged
        lines = logged.splitlines()
        if form == "text":
            assert sum("DEBUG answered model=colours version=1 inputs=1 decode_us=" in line for line in lines) == 1
            assert sum(f"refused {caught.value.id}, INVALID_ARGUMENT IMAGE_UNREADABLE" in line for line in lines) == 1
        else:
            records = [json.loads(line) for line in lines]
            [answered] = [one for one in records if one["message"].startswith("answered")]
            assert {"time", "level", "logger", "model", "version", "inputs", "wait_us"} <= set(answered)
            [refused] = [one for one in records if one.get("id") == caught.value.id]
            assert (refused["code"], refused["reason"]) == ("INVALID_ARGUMENT", "IMAGE_UNREADABLE")

    def test_is_one_json_object_per_line(self, colours: Path) -> None:
        with serving(colours, "--log-format", "json") as server:
            _, logged = server.stop()
        assert all(json.loads(line)["level"] for line in logged.splitlines())
