"""A client for ``evalmode.v1.Classifier``: needs the bare install only.

Example::

    with Client("127.0.0.1:8001") as client:
        print(client.predict("cat.jpg").label)
"""

from __future__ import annotations

import asyncio
import json
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from evalmode.errors import EvalmodeError
from evalmode.prediction import DEFAULT_TOP_K, Prediction, Score
from evalmode.wire import classifier_pb2 as wire
from evalmode.wire import classifier_pb2_grpc as wire_grpc

DEFAULT_ADDRESS = "127.0.0.1:8001"
RETRY = {  # of UNAVAILABLE alone: another server may answer; a request cut in mid-run runs twice, which does no harm
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
CHANNEL = (
    ("grpc.max_receive_message_length", -1),  # the server's limits decide
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),  # notice a server that vanished without a word
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": RETRY}]})),
)


class CallFailed(EvalmodeError):
    """The server refused or could not be asked.

    Attributes:
        code: the gRPC status code's name, ``INVALID_ARGUMENT``.
        reason: why, for machines: a reason of docs/wire-protocol.md, or "" where the transport itself failed.
        id: under which the server's log has the error, or "" where it never got there.
        retry: True where the same call may succeed later or at another server.
    """

    def __init__(self, message: str, *, code: str, reason: str, id: str, retry: bool, facts: dict[str, str]) -> None:
        super().__init__(message, **facts)
        self.code = code
        self.reason = reason
        self.id = id
        self.retry = retry


class Client:
    """A connection to one server; safe to share between threads.

    Args:
        address: HOST:PORT.
        timeout_s: the deadline of every call, seconds; what is retried shares it.
        token: sent with every call, where the server wants one.
        tls: files; see ``_open_channel``.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, timeout_s: float = 10.0, *, token: str = "", **tls: Path | None
    ) -> None:
        self._channel = _open_channel(grpc, address, **tls)
        self._metadata = _authorize(token)
        self._stub = wire_grpc.ClassifierStub(self._channel)  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in flight fail."""
        self._channel.close()

    def predict(
        self, image: bytes | str | PathLike[str], *, model: str = "", version: str = "", top_k: int = DEFAULT_TOP_K
    ) -> Prediction:
        """Classify one encoded image, given as bytes or as a path.

        Raises:
            CallFailed: the server refused or could not be asked.
            OSError: the path cannot be read.
        """
        request = wire.PredictRequest(image=_read_image(image), model=model, version=version, top_k=top_k)
        return _read_prediction(self._call(self._stub.Predict, request))

    def predict_pixels(
        self, pixels: Any, *, model: str = "", version: str = "", top_k: int = DEFAULT_TOP_K
    ) -> Prediction:
        """Classify decoded pixels: a uint8 array (H, W, C) of the model's shape, or anything with that buffer.

        Raises:
            CallFailed: the server refused or could not be asked.
            ValueError: not three axes of uint8.
        """
        request = wire.PredictRequest(pixels=_read_pixels(pixels), model=model, version=version, top_k=top_k)
        return _read_prediction(self._call(self._stub.Predict, request))

    def get_model(self, model: str = "", version: str = "") -> wire.GetModelResponse:
        """Ask what a model expects and answers with.

        Raises:
            CallFailed: the server refused or could not be asked.
        """
        request = wire.GetModelRequest(model=model, version=version)
        reply: wire.GetModelResponse = self._call(self._stub.GetModel, request)
        return reply

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _call_failed(error) from error


class AsyncClient:
    """The same for asyncio: every call is awaited, ``async with`` closes it.

    Args:
        address: HOST:PORT.
        timeout_s: the deadline of every call, seconds; what is retried shares it.
        token: sent with every call, where the server wants one.
        tls: files; see ``_open_channel``.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, timeout_s: float = 10.0, *, token: str = "", **tls: Path | None
    ) -> None:
        self._channel = _open_channel(grpc.aio, address, **tls)
        self._metadata = _authorize(token)
        self._stub = wire_grpc.ClassifierStub(self._channel)  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight fail."""
        await self._channel.close()

    async def predict(
        self, image: bytes | str | PathLike[str], *, model: str = "", version: str = "", top_k: int = DEFAULT_TOP_K
    ) -> Prediction:
        """See ``Client.predict``."""
        encoded = await asyncio.to_thread(_read_image, image)  # a disk may be slow, and others wait
        request = wire.PredictRequest(image=encoded, model=model, version=version, top_k=top_k)
        return _read_prediction(await self._call(self._stub.Predict, request))

    async def predict_pixels(
        self, pixels: Any, *, model: str = "", version: str = "", top_k: int = DEFAULT_TOP_K
    ) -> Prediction:
        """See ``Client.predict_pixels``."""
        request = wire.PredictRequest(pixels=_read_pixels(pixels), model=model, version=version, top_k=top_k)
        return _read_prediction(await self._call(self._stub.Predict, request))

    async def get_model(self, model: str = "", version: str = "") -> wire.GetModelResponse:
        """See ``Client.get_model``."""
        request = wire.GetModelRequest(model=model, version=version)
        reply: wire.GetModelResponse = await self._call(self._stub.GetModel, request)
        return reply

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _call_failed(error) from error


def _open_channel(
    kind: Any, address: str, tls_ca: Path | None = None, tls_cert: Path | None = None, tls_key: Path | None = None
) -> Any:
    """A connection: plain text, or TLS where a file is given.

    Args:
        kind: ``grpc`` or ``grpc.aio``.
        address: HOST:PORT.
        tls_ca: PEM, the authorities that the server's certificate must come from.
        tls_cert: PEM, our own certificate, where the server asks for one.
        tls_key: PEM, its private key.

    Raises:
        OSError: a file cannot be read.
    """
    if not (tls_ca or tls_cert or tls_key):
        return kind.insecure_channel(address, options=CHANNEL)
    files = (Path(file).read_bytes() if file else None for file in (tls_ca, tls_key, tls_cert))
    return kind.secure_channel(address, grpc.ssl_channel_credentials(*files), options=CHANNEL)


def _authorize(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def _read_image(image: bytes | str | PathLike[str]) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _read_pixels(pixels: Any) -> wire.Pixels:
    view = memoryview(pixels)
    shape = view.shape or ()
    if view.format != "B" or len(shape) != 3:
        raise ValueError(f"pixels are {len(shape)} axes of {view.format!r}, wanted uint8 (height, width, channels)")
    height, width, channels = shape
    return wire.Pixels(data=view.tobytes(), height=height, width=width, channels=channels)


def _read_prediction(reply: wire.PredictResponse) -> Prediction:
    return Prediction(
        scores=tuple(Score(score.label, score.probability, score.index) for score in reply.scores),
        model=reply.model,
        version=reply.version,
        digest=reply.digest,
        decode_us=reply.decode_us,
        wait_us=reply.wait_us,
        inference_us=reply.inference_us,
    )


def _call_failed(error: Any) -> CallFailed:
    """Read google.rpc details from a failed call's trailing metadata."""
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    retry = error.code() is grpc.StatusCode.UNAVAILABLE
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                detail.Unpack(info)
                detail.Unpack(request)
                retry = retry or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    return CallFailed(
        f"{error.code().name}: {error.details()}",
        code=error.code().name,
        reason=info.reason,
        id=request.request_id,
        retry=retry,
        facts=dict(info.metadata),
    )
