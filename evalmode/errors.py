"""The errors of evalmode, in the order in which a request is processed.

::

    EvalmodeError
    ├── UsageError                 wrong usage or input: one line, exit code 2
    │   ├── ArtifactInvalid        the file cannot be served
    │   │   ├── DigestMismatch
    │   │   ├── OperatorNotAllowed
    │   │   ├── Uncertified
    │   │   ├── DecoderMismatch
    │   │   ├── ReplayMismatch
    │   │   ├── LabelsMismatch
    │   │   └── LoadLimitExceeded
    │   ├── TrialUnavailable
    │   ├── WorkerUnavailable
    │   ├── NameInvalid
    │   ├── ProviderUnavailable
    │   ├── AddressUnavailable
    │   ├── ThreadsUnavailable
    │   ├── TokensInvalid
    │   ├── CertificatesInvalid
    │   └── NameUnavailable        also an AttributeError
    ├── DataError                  labelled images cannot be used: one line, exit code 2
    ├── ProofFailed                a check of a network failed: exit code 1
    │   ├── TrainMode
    │   ├── WeightsNotFinite
    │   ├── OutputsMismatch
    │   ├── NotRepeatable
    │   ├── BatchMismatch
    │   ├── MomentsMismatch
    │   ├── GoldenMismatch
    │   ├── ReferenceMismatch
    │   └── NotWorthIt
    └── RequestError               a request was refused: services/status.py maps each to a gRPC status
        ├── TokenInvalid
        ├── ControlForbidden
        ├── ControlDisabled
        ├── NotServed
        ├── MethodUnknown
        ├── ServiceUnknown
        ├── ModelUnspecified
        ├── ModelNotFound
        ├── ModelInvalid
        ├── InputMissing
        ├── ImagesNotTaken
        ├── TensorError            tensors do not match the model or the protocol
        │   ├── TensorUnknown
        │   ├── TensorMissing
        │   ├── TensorDuplicate
        │   ├── DatatypeMismatch
        │   ├── ShapeMismatch
        │   ├── ContentsMixed
        │   ├── ContentsMismatch
        │   ├── NotFinite
        │   └── ParameterInvalid
        ├── BatchTooLarge
        ├── ImageError             the image cannot be decoded
        │   ├── ImageEmpty
        │   ├── ImageTooLarge
        │   ├── ImageTooManyPixels
        │   ├── ImageTooComplex
        │   ├── ImageNeedsTooMuchMemory
        │   ├── ImageFormatNotAllowed
        │   ├── ImageSizeMismatch
        │   └── ImageUnreadable
        ├── PixelsMismatch
        ├── MessageInvalid
        ├── MessageTooLarge
        ├── MessageLate
        ├── MessagesFull
        ├── QueueFull
        ├── CallsFull
        ├── StreamsFull
        ├── WatchesFull
        ├── ServerLeaving
        ├── DeadlineExpired
        └── RequestCancelled

A message states what is wrong, with the value and the limit, and what to do. Errors do not depend on gRPC.
"""

from __future__ import annotations


class EvalmodeError(Exception):
    """Base class of all errors that evalmode raises on purpose.

    Args:
        message: What is wrong, with the value and the limit, and what to do.
        facts: The values in the message by name.

    Attributes:
        facts: The values in the message by name, for programs (``size_bytes``, ``limit_bytes``).
        exit_code: The exit code of a command that fails with this error.
    """

    exit_code = 2

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = {name: str(value) for name, value in facts.items()}


class UsageError(EvalmodeError):
    """The usage of a command, or a file passed to it, is wrong."""


class ArtifactInvalid(UsageError):
    """The file is not an artifact that this version of evalmode can serve."""


class DigestMismatch(ArtifactInvalid):
    """The file has changed since it was sealed."""


class OperatorNotAllowed(ArtifactInvalid):
    """The graph needs operators or data that are not in the file."""


class Uncertified(ArtifactInvalid):
    """The artifact has no certificate, and uncertified artifacts are not allowed."""


class DecoderMismatch(ArtifactInvalid):
    """The image decoder gives other pixels than where the certificate was made."""


class ReplayMismatch(ArtifactInvalid):
    """The network's outputs differ from those in its certificate."""


class LabelsMismatch(ArtifactInvalid):
    """The labels in the file are not those of its certificate."""


class LoadLimitExceeded(ArtifactInvalid):
    """Checking and replaying the artifact exceeds the limits for time or memory."""


class TrialUnavailable(UsageError):
    """The process that checks or loads an artifact cannot be started, or was ended."""


class WorkerUnavailable(UsageError):
    """A worker process cannot be started, or ends again and again before it is ready."""


class NameInvalid(UsageError):
    """The name of a model is not allowed as a folder of a model repository."""


class ProviderUnavailable(UsageError):
    """The requested execution provider is not available."""


class AddressUnavailable(UsageError):
    """The server cannot listen on the requested address."""


class ThreadsUnavailable(UsageError):
    """The system cannot start as many threads as the server needs."""


class TokensInvalid(UsageError):
    """A file of tokens cannot be used."""


class CertificatesInvalid(UsageError):
    """The files for TLS cannot be used."""


class NameUnavailable(UsageError, AttributeError):
    """A public name cannot be imported: an extra is missing, or a folder of the user hides a package.

    It is an ``AttributeError``, too, so that ``hasattr``, ``help`` and completion skip the name.
    """


class DataError(EvalmodeError):
    """The labelled images cannot be used."""


class ProofFailed(EvalmodeError):
    """A check of a network failed."""

    exit_code = 1


class TrainMode(ProofFailed):
    """Something in the graph acts as in training."""


class WeightsNotFinite(ProofFailed):
    """A weight or a statistic is NaN or infinite, or a variance is negative."""


class OutputsMismatch(ProofFailed):
    """The outputs do not match the labels, or are NaN or infinite."""


class NotRepeatable(ProofFailed):
    """The same inputs give other outputs the second time."""


class BatchMismatch(ProofFailed):
    """An input gives other outputs in a batch than alone."""


class MomentsMismatch(ProofFailed):
    """The statistics of batch norm are not those of its inputs."""


class GoldenMismatch(ProofFailed):
    """Too few golden images get their label."""


class ReferenceMismatch(ProofFailed):
    """The network's own library gives other answers for the same images."""


class NotWorthIt(ProofFailed):
    """A quantized variant is too slow or too inaccurate."""


class RequestError(EvalmodeError):
    """A request was refused.

    Args:
        message: What is wrong, with the value and the limit, and what to do.
        field: The field of the request that is wrong, by its name in the protocol; "" if it is not a single field.
        facts: The values in the message by name.

    Attributes:
        field: The field of the request that is wrong, by its name in the protocol; "" if it is not a single field.
    """

    def __init__(self, message: str, *, field: str = "", **facts: object) -> None:
        super().__init__(message, **facts)
        self.field = field


class at_field:  # noqa: N801  a context manager, called like a function
    """Context manager that sets the field of a ``RequestError`` that has none."""

    def __init__(self, field: str) -> None:
        self._field = field

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RequestError):
            error.field = error.field or self._field


class TokenInvalid(RequestError):
    """The server requires a token, and the call has no valid one."""


class ControlForbidden(RequestError):
    """The token of the call does not allow loading and unloading models."""


class ControlDisabled(RequestError):
    """The server was started without ``--enable-control``, so calls cannot load and unload models."""


class NotServed(RequestError):
    """The server does not support this call of the protocol: shared memory, tracing, log settings."""


class MethodUnknown(RequestError):
    """The server has no such service or method."""


class ServiceUnknown(RequestError):
    """A health check names an unknown service or model."""


class ModelUnspecified(RequestError):
    """The request names no model, and several are loaded."""


class ModelNotFound(RequestError):
    """There is no such model or version."""


class ModelInvalid(RequestError):
    """The newest version of the model in the repository cannot be loaded."""


class InputMissing(RequestError):
    """The request contains neither an image nor pixels."""


class ImagesNotTaken(RequestError):
    """The request contains an image, but the model is a network of tensors."""


class TensorError(RequestError):
    """Tensors do not match the model or the rules of the protocol."""


class TensorUnknown(TensorError):
    """The model has no input or output of that name."""


class TensorMissing(TensorError):
    """The request lacks an input of the model."""


class TensorDuplicate(TensorError):
    """An input or a requested output is named twice."""


class DatatypeMismatch(TensorError):
    """The datatype of a tensor is not the model's, or not one of the protocol's."""


class ShapeMismatch(TensorError):
    """The shape of a tensor is not the model's, or the inputs have different batch sizes."""


class ContentsMixed(TensorError):
    """The request has both raw and typed contents, or typed contents in the field of another datatype."""


class ContentsMismatch(TensorError):
    """The size of the contents does not match shape and datatype."""


class NotFinite(TensorError):
    """An input contains NaN or infinite values, and ``--allow-nonfinite`` is off."""


class ParameterInvalid(TensorError):
    """A parameter is unknown, or its value is not allowed."""


class BatchTooLarge(RequestError):
    """The request has more inputs than ``max_batch``."""


class ImageError(RequestError):
    """The image cannot be decoded."""


class ImageEmpty(ImageError):
    """The image has 0 bytes."""


class ImageTooLarge(ImageError):
    """The image has more encoded bytes than ``max_image_bytes``."""


class ImageTooManyPixels(ImageError):
    """The image has more pixels, according to its header, than ``max_image_pixels``."""


class ImageTooComplex(ImageError):
    """Decoding takes more work than images of this size need: too many scans, chunks, segments or runs."""


class ImageNeedsTooMuchMemory(ImageError):
    """Decoding takes more memory than ``max_decode_bytes``."""


class ImageFormatNotAllowed(ImageError):
    """The image is of an unsupported format."""


class ImageSizeMismatch(ImageError):
    """The image has another size than the model, which resizes nothing."""


class ImageUnreadable(ImageError):
    """The bytes are not an image, or the image is truncated or damaged."""


class PixelsMismatch(RequestError):
    """Raw pixels do not have the model's shape, or their size does not match their shape."""


class MessageInvalid(RequestError):
    """The call has no message, or the message cannot be parsed."""


class MessageTooLarge(RequestError):
    """The decompressed message is larger than ``max_request_bytes``."""


class MessageLate(RequestError):
    """The message of the call did not arrive in time."""


class MessagesFull(RequestError):
    """The messages of the requests in flight use all memory that is allowed for messages."""


class QueueFull(RequestError):
    """``max_queue`` requests are waiting, or they take longer than the deadline of this one allows."""


class CallsFull(RequestError):
    """Too many calls are waiting for their message."""


class StreamsFull(RequestError):
    """``max_streams`` streams are open."""


class WatchesFull(RequestError):
    """``max_watches`` health watches are open."""


class ServerLeaving(RequestError):
    """The server is shutting down and accepts no new requests."""


class DeadlineExpired(RequestError):
    """The deadline of the call, or the ``timeout`` of the request, expired before the network ran."""


class RequestCancelled(RequestError):
    """The call was cancelled before the network ran."""
