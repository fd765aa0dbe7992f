"""The ``evalmode.v1.Classifier`` service, independent of the transport: parsed requests to replies or errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from evalmode.artifact.tensors import INPUT, PROBABILITIES
from evalmode.errors import InputMissing, at_field
from evalmode.images.headers import read_header
from evalmode.images.pixels import check_pixels
from evalmode.limits import Limits
from evalmode.runtime.model import Model
from evalmode.wire import classifier_pb2 as wire
from serving.engine.call import Call
from serving.engine.decodes import Decodes
from serving.engine.decoding import count_decode_bytes, decode_requested
from serving.services.inference import Read, Reading, Timed
from serving.services.loaded import LoadedModels

DESCRIPTOR = wire.DESCRIPTOR.services_by_name["Classifier"]


class Classifier:
    """Classifies images.

    Args:
        models: The models that requests can name.
        limits: The limits on the size of an image.
        decodes: The limit on the memory for decoding images.

    Attributes:
        handlers: The handler of each method that runs no inference, by the method's name in the proto file.
    """

    def __init__(self, models: LoadedModels, limits: Limits, decodes: Decodes) -> None:
        self._models = models
        self._limits = limits
        self._decodes = decodes
        self.handlers: dict[str, Callable[[Any, Call], Any]] = {"GetModel": self.get_model}

    def has_images(self, request: wire.PredictRequest) -> bool:
        """See ``Service``."""
        return request.HasField("image")

    def find(self, request: wire.PredictRequest) -> Model:
        """See ``Service``."""
        return self._models.find(request.model, request.version)

    def begin(self, request: wire.PredictRequest, model: Model, call: Call) -> Reading:
        """See ``Service``.

        Args:
            request: The request.
            model: The model that it names.
            call: Its call.

        Raises:
            InputMissing: The request holds neither an image nor pixels.
            ImageError: The image is not usable.
            PixelsMismatch: The raw pixels do not match the model's input.
        """
        top_k = request.top_k  # the closure must not keep the request, which holds the image, alive

        def write(timed: Timed) -> wire.PredictResponse:
            ranked = classifier.rank(timed.outputs[PROBABILITIES][0], top_k)
            return wire.PredictResponse(
                scores=[{"label": label, "probability": best, "index": index} for label, best, index in ranked],
                model=model.name,
                version=model.version,
                digest=model.digest,
                decode_us=timed.decode_us,
                wait_us=timed.wait_us,
                inference_us=timed.inference_us,
            )

        sent = request.WhichOneof("input")
        with at_field(sent or "input"):
            classifier = model.as_classifier()
            contract = classifier.manifest.pixels
            if sent == "image":
                header = read_header(request.image, self._limits)
                cost_bytes = count_decode_bytes(header, contract)
                self._decodes.check(cost_bytes)

                def decode() -> Read:
                    with at_field("image"):
                        return Read({INPUT: decode_requested(header, contract)[np.newaxis]}, write, call)

                return Reading(cost_bytes, decode, call)
            if sent == "pixels":
                raw = request.pixels
                pixels = check_pixels(raw.data, (raw.height, raw.width, raw.channels), contract)
                return Reading(0, lambda: Read({INPUT: pixels[np.newaxis]}, write, call), call)
            raise InputMissing("the request holds no input: set 'image' (encoded bytes) or 'pixels' (raw uint8)")

    def get_model(self, request: wire.GetModelRequest, call: Call) -> wire.GetModelResponse:
        """Describe a model: its input, its labels, its certificate and how it is served.

        Args:
            request: Names the model.
            call: Not used.

        Raises:
            ModelNotFound: No such model is loaded.
            ModelUnspecified: Several models are loaded and the request names none.
        """
        model = self._models.find(request.model, request.version)
        return wire.GetModelResponse(
            model=model.name,
            version=model.version,
            digest=model.digest,
            labels=model.manifest.labels,
            pixels=_describe_pixels(model),
            provider=model.provider.name,
            limits=asdict(self._limits),
            properties={name: json.dumps(value) for name, value in model.manifest.properties.items()},
            certified=model.manifest.certificate is not None,
            batch_invariant=model.batch_invariant,
        )


def _describe_pixels(model: Model) -> wire.PixelContract | None:
    for contract in model.manifest.image_inputs.values():
        height, width, channels = contract.shape
        return wire.PixelContract(height=height, width=width, channels=channels, resize=contract.describe())
    return None
