"""The ``evalmode.v1.Classifier`` service: a parsed request and its call go in, a reply or an error comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from serving.batch import Call
from serving.batching import count_cpus
from serving.certificate import INPUT, PROBABILITIES
from serving.decoding import DecodeBudget, make_budget
from serving.errors import InputMissing, at_field
from serving.limits import Limits
from serving.model import Model
from serving.pixels import RESIZE, Pixels, check_pixels
from serving.services.inference import Inference, Read, Timed
from serving.services.models import Models
from serving.wire import classifier_pb2 as wire

DESCRIPTOR = wire.DESCRIPTOR.services_by_name["Classifier"]


class Classifier:
    """Classifies images with the models it was given.

    Args:
        models: what is served.
        inference: what runs them.
        limits: what an image may weigh.
        budget: that images are decoded in; one of its own where none is given.

    Attributes:
        handlers: what answers each call, by its name in the contract.
    """

    def __init__(
        self, models: Models, inference: Inference, limits: Limits, budget: DecodeBudget | None = None
    ) -> None:
        self._models = models
        self._inference = inference
        self._limits = limits
        self._budget = budget or make_budget(count_cpus(), limits)
        self.handlers: dict[str, Callable[[Any, Call], Any]] = {"Predict": self.predict, "GetModel": self.get_model}

    def predict(self, request: wire.PredictRequest, call: Call) -> wire.PredictResponse:
        """Classify one image.

        Raises:
            RequestError: see services/status.py.
        """
        reply: wire.PredictResponse = self._inference.answer(self, request, call)
        return reply

    def find(self, request: wire.PredictRequest) -> Model:
        """See ``Service``."""
        return self._models.find(request.model, request.version)

    def read(self, request: wire.PredictRequest, model: Model, call: Call) -> Read:
        """See ``Service``."""

        def write(timed: Timed) -> wire.PredictResponse:
            ranked = model.rank(timed.outputs[PROBABILITIES][0], request.top_k)
            return wire.PredictResponse(
                scores=[{"label": label, "probability": best, "index": index} for label, best, index in ranked],
                model=model.name,
                version=model.version,
                digest=model.digest,
                decode_us=timed.decode_us,
                wait_us=timed.wait_us,
                inference_us=timed.inference_us,
            )

        return Read({INPUT: self._read_pixels(request, model, call)[np.newaxis]}, write, call)

    def get_model(self, request: wire.GetModelRequest, call: Call) -> wire.GetModelResponse:
        """Say what a model expects, what it answers with and how it is served."""
        model = self._models.find(request.model, request.version)
        return wire.GetModelResponse(
            model=model.name,
            version=model.version,
            digest=model.digest,
            labels=model.manifest.labels,
            pixels=_describe_pixels(model),
            provider=model.provider,
            limits=asdict(self._limits),
            properties={name: json.dumps(value) for name, value in model.manifest.properties.items()},
            certified=model.manifest.certificate is not None,
            batch_invariant=model.batch_invariant,
        )

    def _read_pixels(self, request: wire.PredictRequest, model: Model, call: Call) -> Pixels:
        """The request's input as the pixels the model wants, whichever way it was sent."""
        sent = request.WhichOneof("input")
        with at_field(sent or "input"):
            contract = model.manifest.pixels
            if sent == "image":
                return self._budget.decode(request.image, contract, call)
            if sent == "pixels":
                raw = request.pixels
                return check_pixels(raw.data, (raw.height, raw.width, raw.channels), contract)
            raise InputMissing("the request holds no input: set 'image' (encoded bytes) or 'pixels' (raw uint8)")


def _describe_pixels(model: Model) -> wire.PixelContract | None:
    image = model.manifest.image
    return wire.PixelContract(**vars(image), resize=RESIZE) if image else None
