"""Code of the native transport alone; the wire behaviour is tested on both transports by ``--transport``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
import pytest

from evalmode.artifact.publishing import publish
from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT, LOGITS, PROBABILITIES
from evalmode.limits import Limits
from evalmode.runtime.model import ImageClassifier
from evalmode.wire import classifier_pb2 as wire
from evalmode.wire import classifier_pb2_grpc as wire_grpc
from evalmode.wire import open_inference_pb2 as infer
from evalmode.wire import open_inference_pb2_grpc as infer_grpc
from tests.conftest import colour_artifact, encode, plain
from tests.serving.conftest import WAIT_S, BlockedModel, classify_by, make_backend, make_executor, wait_until

native = pytest.importorskip("serving.transports.native", reason="evalmode[native] is not installed")
pygrpc_native = pytest.importorskip("pygrpc_native")
RED = wire.PredictRequest(image=encode(plain("red")))
PIXELS = wire.PredictRequest(pixels=wire.Pixels(data=bytes((255, 0, 0)) * 16, height=4, width=4, channels=3))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path, "colours", colour_artifact())
    return tmp_path


def listen(blocked: BlockedModel, slots: int, limits: Limits) -> Any:
    """Start a server in this process on a free port."""
    direct = classify_by(blocked, executor=make_executor(slots, limits), limits=limits)
    server = native.NativeServer(make_backend(direct, limits), "127.0.0.1:0")
    server.start()
    return server


def test_requests_for_different_outputs_are_never_in_one_batch(mapped: ImageClassifier) -> None:
    blocked = BlockedModel(mapped)
    server = listen(blocked, 1, Limits())
    requests = [ask_for(value, *[ACTIVATION_MAP, LOGITS][: value % 2 * 2]) for value in range(7)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        model_infer = infer_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        calls = [model_infer.future(requests[0], timeout=WAIT_S)]
        blocked.next_batch()
        calls += [model_infer.future(request, timeout=WAIT_S) for request in requests[1:]]
        wait_until(lambda: server.load().waiting == 6)
        blocked.release(3)
        assert sorted(len(blocked.next_batch()) for _ in range(2)) == [3, 3]
        for value, call in enumerate(calls):
            reply = call.result(WAIT_S)
            asked = [ACTIVATION_MAP, LOGITS] if value % 2 else [PROBABILITIES, LOGITS]
            assert [output.name for output in reply.outputs] == asked
            assert np.frombuffer(reply.raw_output_contents[1], np.float32)[0] == np.float32(value) / np.float32(25.5)
            if value % 2:
                assert np.allclose(np.frombuffer(reply.raw_output_contents[0], np.float32)[:16], value / 25.5)
    server.drain(0)


def ask_for(value: int, *outputs: str) -> infer.ModelInferRequest:
    """A request with an image whose red channel is ``value``."""
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[..., 0] = value
    inputs = [{"name": INPUT, "datatype": "UINT8", "shape": image.shape}]
    return infer.ModelInferRequest(
        inputs=inputs, raw_input_contents=[image.tobytes()], outputs=[{"name": name} for name in outputs]
    )


def test_all_slots_run_requests_that_one_thread_received(model: ImageClassifier) -> None:
    blocked = BlockedModel(model)
    blocked.row_s = 0.008
    server = listen(blocked, 2, Limits())
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        predict = wire_grpc.ClassifierStub(channel).Predict
        pixels = wire.Pixels(data=bytes((255, 0, 0) * 16), height=4, width=4, channels=3)
        calls = [predict.future(wire.PredictRequest(pixels=pixels), timeout=WAIT_S) for _ in range(8)]
        wait_until(lambda: server.load().slots_busy == 2)
        blocked.release(100)
        assert [call.result(WAIT_S).scores[0].label for call in calls] == ["red"] * 8
    server.drain(0)


def test_every_call_ends_without_others_that_follow(model: ImageClassifier) -> None:
    """Whichever thread receives calls, and whichever thread frees the slot."""
    slow = BlockedModel(model)
    slow.release(10_000)
    run = slow.run

    def run_slowly(*arguments: Any) -> Any:
        time.sleep(1.5 * native.WATCH_S)
        return run(*arguments)

    with patch.object(slow, "run", run_slowly):
        server = listen(slow, 1, Limits(max_batch=1))
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            predict = wire_grpc.ClassifierStub(channel).Predict
            for number in range(50):
                calls = [predict.future(PIXELS, timeout=5) for _ in range(2 + number % 4)]
                assert [call.result().scores[0].label for call in calls] == ["red"] * len(calls)
        server.drain(0)


def test_a_timeout_of_a_request_counts_from_its_arrival(model: ImageClassifier) -> None:
    blocked = BlockedModel(model)
    server = listen(blocked, 1, Limits(max_batch=1))
    asked = infer.ModelInferRequest(
        model_name="colours", parameters={"timeout": infer.InferParameter(int64_param=50_000)}
    )
    asked.inputs.add(name="image", datatype="UINT8", shape=(1, 4, 4, 3))
    asked.raw_input_contents.append(bytes(48))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        running = wire_grpc.ClassifierStub(channel).Predict.future(RED, timeout=WAIT_S)
        blocked.next_batch()
        waiting = infer_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(asked, timeout=WAIT_S)
        wait_until(lambda: server.load().waiting)
        time.sleep(0.06)
        blocked.release(2)
        assert running.result(WAIT_S).scores[0].label == "red"
        assert waiting.code().name == "DEADLINE_EXCEEDED"
    server.drain(0)


def test_calls_that_end_while_they_wait_are_counted(model: ImageClassifier) -> None:
    blocked = BlockedModel(model)
    server = listen(blocked, 1, Limits(max_batch=1))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        predict = wire_grpc.ClassifierStub(channel).Predict
        running = predict.future(RED, timeout=WAIT_S)
        blocked.next_batch()
        late, cancelled = predict.future(RED, timeout=0.2), predict.future(RED, timeout=WAIT_S)
        wait_until(lambda: server.load().waiting == 2)
        cancelled.cancel()
        wait_until(lambda: late.done() and not server.load().waiting)
        blocked.release()
        assert running.result(WAIT_S).scores[0].label == "red"
    counts = server._inference.statistics.counts
    refused = {("CANCELLED", "REQUEST_CANCELLED"): 1, ("DEADLINE_EXCEEDED", "DEADLINE_EXPIRED"): 1}
    assert counts["colours", "1"].codes == {("OK", ""): 1, **refused}
    server.drain(0)


def test_a_call_that_was_cancelled_before_it_was_received_is_not_begun(model: ImageClassifier) -> None:
    server = listen(BlockedModel(model), 1, Limits())
    call = (pygrpc_native.EVENT_CALL, 1, 0, RED.SerializeToString(), None, ((), "ipv4:127.0.0.1:1", None))
    with patch.object(server._connections, "count_message") as count_message:
        server._begin_all([call, (pygrpc_native.EVENT_CANCEL, 1, 0, None, None, None)])
    count_message.assert_called_once_with("ipv4:127.0.0.1:1", RED.ByteSize())  # its bytes have arrived
    assert server._calls == {}
    server.drain(0)


def test_cancelled_calls_take_no_place_of_their_connection(model: ImageClassifier) -> None:
    blocked = BlockedModel(model)
    with patch("serving.transports.native.STREAMS", 4):
        server = listen(blocked, 1, Limits(max_batch=1))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        predict = wire_grpc.ClassifierStub(channel).Predict
        running = predict.future(RED, timeout=WAIT_S)
        blocked.next_batch()
        for _ in range(3):
            for call in [predict.future(RED, timeout=WAIT_S) for _ in range(3)]:
                call.cancel()  # many of them arrive together with their cancellation
        blocked.release(100)
        assert running.result(WAIT_S).scores[0].label == "red"
        assert predict(RED, timeout=WAIT_S).scores[0].label == "red"
    server.drain(0)


def test_a_fault_of_the_server_fails_its_request_and_frees_the_slot(model: ImageClassifier) -> None:
    blocked = BlockedModel(model)
    blocked.release(10)
    server = listen(blocked, 1, Limits())
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        predict = wire_grpc.ClassifierStub(channel).Predict
        for place in ("count_answer", "count_refusal"):
            with patch.object(server._inference.statistics, place, side_effect=ZeroDivisionError):
                asked = RED if place == "count_answer" else wire.PredictRequest()
                assert predict.future(asked, timeout=WAIT_S).code().name == "INTERNAL"
            assert predict(RED, timeout=WAIT_S).scores[0].label == "red"
        assert server._calls == {}
    assert server.drain(0) == 0


def test_the_temporary_folder_is_removed_at_the_end(model: ImageClassifier) -> None:
    before = set(Path(tempfile.gettempdir()).glob("evalmode-*"))
    server = listen(BlockedModel(model), 1, Limits())
    [folder] = set(Path(tempfile.gettempdir()).glob("evalmode-*")) - before
    server.drain(0)
    assert not folder.exists()


def test_beyond_loopback_it_needs_allow_unbounded_messages(repository: Path) -> None:
    command = [sys.executable, "-m", "evalmode", "serve", "--repository", str(repository), "--transport", "native"]
    done = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 2
    assert "add --allow-unbounded-messages" in done.stderr
    assert "Traceback" not in done.stderr
    allowed = [*command, "--host", "0.0.0.0", "--allow-unbounded-messages", "--port", "0", "--no-metrics"]
    with subprocess.Popen([*allowed, "--lame-duck", "0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("serving")
        finally:
            process.terminate()
    assert process.returncode == 0


def test_a_missing_library_is_reported_with_the_extra(repository: Path) -> None:
    code = (
        "import sys; sys.modules['pygrpc_native'] = None\n"
        "from evalmode.cli.main import main\n"
        f"sys.argv = ['evalmode', 'serve', '--repository', {str(repository)!r}, '--transport', 'native']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 2, done.stderr
    assert "pip install 'evalmode[native]'" in done.stderr
