"""The Classifier service without a transport: replies and errors for parsed requests."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from evalmode.artifact.tensors import INPUT, LOGITS, PROBABILITIES, Tensors
from evalmode.errors import (
    DeadlineExpired,
    ImagesNotTaken,
    ImageTooLarge,
    ImageTooManyPixels,
    ImageUnreadable,
    InputMissing,
    ModelNotFound,
    ModelUnspecified,
    PixelsMismatch,
    QueueFull,
    RequestCancelled,
)
from evalmode.limits import Limits
from evalmode.runtime.loading import load_artifact, load_model
from evalmode.runtime.model import ImageClassifier, Model
from evalmode.wire import classifier_pb2 as wire
from serving.engine.executor import Executor
from tests.conftest import COLOURS, colour_artifact, encode, plain
from tests.serving.conftest import BlockedModel, Caller, Direct, classify_by, make_executor
from tests.serving.services.test_open_inference import tensor_artifact

RED = encode(plain("red"))


def serve(*models: Any, executor: Executor | None = None, **limits: int) -> Direct:
    return classify_by(*models, executor=executor, limits=Limits(**limits))


def labels(reply: wire.PredictResponse) -> list[str]:
    return [score.label for score in reply.scores]


@pytest.fixture
def other_models(model: ImageClassifier) -> tuple[Model, Model]:
    """Two models with other names and other labels."""
    manifest = replace(model.manifest, labels=("uno", "due", "tre"))
    first, second = (replace(model, name=name, version="7", manifest=manifest) for name in ("first", "second"))
    return first, second


class TestPredict:
    def test_answers_an_image(self, model: ImageClassifier) -> None:
        reply = serve(model).ask(wire.PredictRequest(image=RED))
        assert labels(reply) == ["red", "green", "blue"]
        assert [score.index for score in reply.scores] == [0, 1, 2]
        assert (reply.model, reply.version, reply.digest) == ("colours", "1", model.digest)
        assert reply.decode_us > 0
        assert reply.wait_us >= 0
        assert reply.inference_us > 0

    def test_answers_pixels(self, model: ImageClassifier) -> None:
        blue = np.full((4, 4, 3), (0, 0, 255), np.uint8)
        pixels = wire.Pixels(data=blue.tobytes(), height=4, width=4, channels=3)
        assert labels(serve(model).ask(wire.PredictRequest(pixels=pixels)))[0] == "blue"

    def test_has_the_same_bits_as_the_model_in_this_process(self, model: ImageClassifier) -> None:
        service = serve(model)
        for seed in range(5):
            noise = np.random.default_rng(seed).integers(0, 256, (31, 17, 3), np.uint8)
            image = encode(Image.fromarray(noise), "JPEG")
            reply = service.ask(wire.PredictRequest(image=image))
            answered = [(score.label, score.probability, score.index) for score in reply.scores]
            assert answered == [(score.label, score.probability, score.index) for score in model.predict(image).scores]

    @pytest.mark.parametrize(("top_k", "answered"), [(0, 3), (1, 1), (2, 2), (3, 3), (99, 3), (2**32 - 1, 3)])
    def test_answers_top_k_labels(self, model: ImageClassifier, top_k: int, answered: int) -> None:
        reply = serve(model).ask(wire.PredictRequest(image=RED, top_k=top_k))
        assert labels(reply) == list(COLOURS)[:answered]

    def test_answers_five_labels_by_default(self, model: ImageClassifier) -> None:
        many = replace(model, manifest=replace(model.manifest, labels=tuple("abcdefgh")))

        class Eight(BlockedModel):
            def run(self, inputs: Tensors, *how: Any) -> Tensors:
                rows = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (len(inputs[INPUT]), 1))
                return {PROBABILITIES: rows, LOGITS: rows}

        reply = serve(Eight(many)).ask(wire.PredictRequest(image=RED))
        assert "".join(labels(reply)) == "hgfed"

    def test_without_input_is_refused(self, model: ImageClassifier) -> None:
        with pytest.raises(InputMissing, match="no input: set 'image'"):
            serve(model).ask(wire.PredictRequest())

    def test_of_bytes_that_are_not_an_image_is_refused(self, model: ImageClassifier) -> None:
        with pytest.raises(ImageUnreadable):
            serve(model).ask(wire.PredictRequest(image=b"no image at all"))

    def test_applies_the_limits_of_the_server(self, model: ImageClassifier) -> None:
        with pytest.raises(ImageTooLarge, match=f"limit is {len(RED) - 1}"):
            serve(model, max_image_bytes=len(RED) - 1).ask(wire.PredictRequest(image=RED))
        with pytest.raises(ImageTooManyPixels, match="limit is 15"):
            serve(model, max_image_pixels=15).ask(wire.PredictRequest(image=RED))

    def test_of_pixels_of_another_shape_is_refused(self, model: ImageClassifier) -> None:
        for size in ((3, 4, 4), (2**32 - 1,) * 3, (0, 0, 0)):
            pixels = wire.Pixels(data=bytes(48), height=size[0], width=size[1], channels=size[2])
            with pytest.raises(PixelsMismatch):
                serve(model).ask(wire.PredictRequest(pixels=pixels))

    def test_of_a_cancelled_or_expired_call_does_not_run(self, model: ImageClassifier) -> None:
        blocked = BlockedModel(model)
        service, cancelled = serve(blocked), Caller()
        cancelled.cancel()
        with pytest.raises(RequestCancelled):
            service.ask(wire.PredictRequest(image=RED), cancelled)
        with pytest.raises(DeadlineExpired):
            service.ask(wire.PredictRequest(image=RED), Caller(remaining_s=0))
        assert blocked.entered.empty()

    def test_with_a_full_queue_is_refused_before_decoding(self, model: ImageClassifier) -> None:
        executor = make_executor(limits=Limits(max_queue=0))
        service = serve(model, executor=executor)
        job = executor.admit(Caller(), print)
        with pytest.raises(QueueFull):
            service.ask(wire.PredictRequest(image=b"no image: decoding it would fail otherwise"))
        executor.leave(job, answered=False)
        assert labels(service.ask(wire.PredictRequest(image=RED)))[0] == "red"

    def test_gives_its_place_back_after_an_error(self, model: ImageClassifier) -> None:
        service = serve(model, max_queue=0)
        for _ in range(3):
            with pytest.raises(InputMissing):
                service.ask(wire.PredictRequest())
            with pytest.raises(ImageUnreadable):
                service.ask(wire.PredictRequest(image=b"no image"))
        assert labels(service.ask(wire.PredictRequest(image=RED)))[0] == "red"


class TestModelChoice:
    @pytest.mark.parametrize(("name", "version"), [("", ""), ("", "1"), ("colours", ""), ("colours", "1")])
    def test_of_the_only_model_needs_no_name(self, model: ImageClassifier, name: str, version: str) -> None:
        request = wire.GetModelRequest(model=name, version=version)
        assert serve(model).service.get_model(request, Caller()).model == "colours"
        predict = wire.PredictRequest(image=RED, model=name, version=version)
        assert serve(model).ask(predict).model == "colours"

    @pytest.mark.parametrize(
        ("name", "version", "wanted"),
        [
            ("cats", "", "cats"),
            ("cats", "1", "cats/1"),
            ("colours", "2", "colours/2"),
            ("", "2", "colours/2"),
            ("colours", "01", "colours/01"),
            ("COLOURS", "", "COLOURS"),
        ],
    )
    def test_of_an_unknown_model_is_refused(self, model: ImageClassifier, name: str, version: str, wanted: str) -> None:
        service = serve(model)
        with pytest.raises(
            ModelNotFound, match=f"^Request for unknown model: '{wanted}' is not found, served: colours/1"
        ) as caught:
            service.ask(wire.PredictRequest(image=RED, model=name, version=version))
        assert caught.value.facts == {"model": wanted, "served": "colours/1"}
        with pytest.raises(ModelNotFound):
            service.service.get_model(wire.GetModelRequest(model=name, version=version), Caller())

    def test_of_several_needs_a_name(self, model: ImageClassifier, other_models: tuple[Model, Model]) -> None:
        service = serve(model, *other_models)
        served = "colours/1, first/7, second/7"
        with pytest.raises(ModelUnspecified, match=r"served: name one of colours, first, second$") as caught:
            service.ask(wire.PredictRequest(image=RED))
        assert caught.value.facts == {"served": served}
        with pytest.raises(ModelUnspecified):
            service.ask(wire.PredictRequest(image=RED, version="7"))
        with pytest.raises(ModelNotFound, match=f"served: {served}$"):
            service.ask(wire.PredictRequest(image=RED, model="third"))
        with pytest.raises(ModelNotFound, match=f"served: {served}; the version has a field of its own"):
            service.ask(wire.PredictRequest(image=RED, model="first/7"))
        reply = service.ask(wire.PredictRequest(image=RED, model="second", version="7"))
        assert (reply.model, reply.version, labels(reply)[0]) == ("second", "7", "uno")
        assert labels(service.ask(wire.PredictRequest(image=RED, model="colours")))[0] == "red"


def test_an_image_for_a_model_of_tensors_is_refused_naming_the_field() -> None:
    model = load_artifact(tensor_artifact("float32"), name="sum", version="1")
    with pytest.raises(ImagesNotTaken) as caught:
        serve(model).ask(wire.PredictRequest(image=RED))
    assert caught.value.field == "image"


def test_a_fault_of_the_server_counts_as_a_failure(model: ImageClassifier) -> None:
    service = serve(model)
    with (
        patch("serving.services.classifier.decode_requested", side_effect=ZeroDivisionError),
        pytest.raises(ZeroDivisionError),
    ):
        service.ask(wire.PredictRequest(image=RED))
    assert service.inference.statistics.counts["colours", "1"].durations["fail"].count == 1


def test_get_model_describes_the_model_and_its_limits(tmp_path: Path) -> None:
    path = tmp_path / "colours.onnx"
    path.write_bytes(colour_artifact(("a", "b", "c")))
    model = load_model(path, name="letters", version="12")
    reply = serve(model, max_queue=3, grace=9).service.get_model(wire.GetModelRequest(), Caller())
    assert (reply.model, reply.version, reply.digest, reply.provider) == ("letters", "12", model.digest, "CPU")
    assert list(reply.labels) == ["a", "b", "c"]
    assert (reply.pixels.height, reply.pixels.width, reply.pixels.channels) == (4, 4, 3)
    assert reply.pixels.resize == (
        "shorter side resized, centre cropped (Pillow, bilinear, antialiased); large JPEGs decoded at 1/2, 1/4 or 1/8"
    )
    assert dict(reply.limits) == asdict(Limits(max_queue=3, grace=9))
    assert {name: json.loads(value) for name, value in reply.properties.items()} == {"network": "colours"}
