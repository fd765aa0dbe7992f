"""The client for asyncio."""

from __future__ import annotations

import asyncio
from os import PathLike
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from evalmode.client.channel import DEFAULT_ADDRESS, FilePath, authorize, open_channel
from evalmode.client.failure import read_failure
from evalmode.client.messages import read_image, read_pixels, read_prediction
from evalmode.prediction import DEFAULT_TOP_K, Prediction, check_top_k
from evalmode.wire import classifier_pb2 as wire
from evalmode.wire import classifier_pb2_grpc as wire_grpc


class AsyncClient:
    """A client for asyncio: like ``Client``, but calls are awaited, and ``async with`` closes it.

    Args:
        address: HOST:PORT of the server.
        timeout_s: The deadline of each call in seconds, retries included.
        token: Sent with each call, if the server requires one.
        tls_ca: PEM file of the certificate authorities to trust. Any of the three files turns TLS on.
        tls_cert: PEM file of the client's certificate, if the server requires one.
        tls_key: PEM file of its private key.

    Raises:
        OSError: A file cannot be read.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        timeout_s: float = 10.0,
        *,
        token: str = "",
        tls_ca: FilePath | None = None,
        tls_cert: FilePath | None = None,
        tls_key: FilePath | None = None,
    ) -> None:
        self._address = address
        self._channel = open_channel(grpc.aio, address, tls_ca, tls_cert, tls_key)
        self._metadata = authorize(token)
        self._stub = wire_grpc.ClassifierStub(self._channel)  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel. Calls in flight fail."""
        await self._channel.close()

    async def predict(
        self, image: bytes | str | PathLike[str], *, model: str = "", version: str = "", top_k: int = DEFAULT_TOP_K
    ) -> Prediction:
        """Classify an encoded image.

        Args:
            image: An encoded image as bytes, or the path of a file.
            model: The model's name; may be "" if the server has one model.
            version: The model's version; "" for the newest.
            top_k: The number of labels in the answer, the most probable first; 0 for the default, 5.

        Returns:
            The labels with their probabilities, and how long the server took.

        Raises:
            CallFailed: The call was refused, or the server could not be reached.
            OSError: The file cannot be read.
            UsageError: ``top_k`` is outside its range.
        """
        encoded = await asyncio.to_thread(read_image, image)  # does not block the event loop
        request = wire.PredictRequest(image=encoded, model=model, version=version, top_k=check_top_k(top_k))
        return read_prediction(await self._call(self._stub.Predict, request))

    async def predict_pixels(
        self, pixels: Any, *, model: str = "", version: str = "", top_k: int = DEFAULT_TOP_K
    ) -> Prediction:
        """Classify decoded pixels.

        Args:
            pixels: uint8 (H, W, C) of the shape that the model takes, an array or another object with a buffer.
            model: The model's name; may be "" if the server has one model.
            version: The model's version; "" for the newest.
            top_k: The number of labels in the answer, the most probable first; 0 for the default, 5.

        Returns:
            The labels with their probabilities, and how long the server took.

        Raises:
            CallFailed: The call was refused, or the server could not be reached.
            ValueError: The pixels are not uint8, or have another number of axes.
            UsageError: ``top_k`` is outside its range.
        """
        message = read_pixels(pixels)
        request = wire.PredictRequest(pixels=message, model=model, version=version, top_k=check_top_k(top_k))
        return read_prediction(await self._call(self._stub.Predict, request))

    async def get_model(self, model: str = "", version: str = "") -> wire.GetModelResponse:
        """Describe a model.

        Args:
            model: The model's name; may be "" if the server has one model.
            version: The model's version; "" for the newest.

        Returns:
            Labels, pixels, limits and properties of the model.

        Raises:
            CallFailed: The call was refused, or the server could not be reached.
        """
        request = wire.GetModelRequest(model=model, version=version)
        reply: wire.GetModelResponse = await self._call(self._stub.GetModel, request)
        return reply

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise read_failure(error, self._address) from error
