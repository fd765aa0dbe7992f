"""The ``evalmode.v1.Classifier`` service: a parsed request and its call go in, a reply or an error comes out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict

from serving.batching import Batcher, Call
from serving.errors import InputMissing, ModelNotFound, ModelUnspecified
from serving.limits import Limits
from serving.model import Model
from serving.pixels import RESIZE, Pixels, check_pixels, decode_image
from serving.wire import classifier_pb2 as wire


class Classifier:
    """Classifies images with the models it was given.

    Args:
        models: the models served, by name.
        batcher: where they run.
        limits: what an image may weigh.
    """

    def __init__(self, models: Mapping[str, Model], batcher: Batcher, limits: Limits) -> None:
        self._models = models
        self._batcher = batcher
        self._limits = limits

    def predict(self, request: wire.PredictRequest, call: Call) -> wire.PredictResponse:
        """Classify one image.

        Raises:
            RequestError: see services/status.py.
        """
        model = self._find_model(request.model, request.version)
        with self._batcher.admit():
            started = time.perf_counter()
            pixels = self._read_pixels(request, model)
            decode_us = round((time.perf_counter() - started) * 1e6)
            answer = self._batcher.run(model, pixels, call)
        return wire.PredictResponse(
            scores=[wire.Score(**vars(score)) for score in model.scores(answer.probabilities, request.top_k)],
            model=model.name,
            version=model.version,
            digest=model.digest,
            decode_us=decode_us,
            wait_us=answer.wait_us,
            inference_us=answer.inference_us,
        )

    def get_model(self, request: wire.GetModelRequest, call: Call) -> wire.GetModelResponse:
        """Say what a model expects, what it answers with and how it is served."""
        model = self._find_model(request.model, request.version)
        return wire.GetModelResponse(
            model=model.name,
            version=model.version,
            digest=model.digest,
            labels=model.manifest.labels,
            pixels=wire.PixelContract(**vars(model.manifest.pixels), resize=RESIZE),
            provider=model.provider,
            limits=asdict(self._limits),
            properties={name: json.dumps(value) for name, value in model.manifest.properties.items()},
            certified=model.manifest.certificate is not None,
            batch_invariant=model.batch_invariant,
        )

    def _find_model(self, name: str, version: str) -> Model:
        served = ", ".join(f"{model.name}/{model.version}" for model in self._models.values())
        if not name and len(self._models) > 1:
            raise ModelUnspecified(f"several models are served, name one of {served}", served=served)
        model = self._models.get(name) if name else next(iter(self._models.values()))
        if model is None or version not in ("", model.version):
            wanted = f"{name or next(iter(self._models))}{'/' if version else ''}{version}"
            raise ModelNotFound(f"model {wanted!r} is not found, served: {served}", model=wanted, served=served)
        return model

    def _read_pixels(self, request: wire.PredictRequest, model: Model) -> Pixels:
        """The request's input as the pixels the model wants, whichever way it was sent."""
        match request.WhichOneof("input"):
            case "image":
                return decode_image(request.image, model.manifest.pixels, self._limits)
            case "pixels":
                raw = request.pixels
                return check_pixels(raw.data, (raw.height, raw.width, raw.channels), model.manifest.pixels)
            case _:
                raise InputMissing("the request holds no input: set 'image' (encoded bytes) or 'pixels' (raw uint8)")
