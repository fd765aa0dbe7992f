"""What can go wrong, in the order in which a request flows.

::

    EvalmodeError
    ├── UsageError                 a command or a file is wrong: one line, exit 2
    │   ├── ArtifactInvalid        an artifact is refused
    │   │   ├── DigestMismatch
    │   │   ├── OperatorNotAllowed
    │   │   ├── Uncertified
    │   │   ├── DecoderMismatch
    │   │   ├── ReplayMismatch
    │   │   └── LoadLimitExceeded
    │   ├── TrialUnavailable
    │   ├── NameInvalid
    │   ├── ProviderUnavailable
    │   ├── AddressUnavailable
    │   ├── ThreadsUnavailable
    │   ├── TokensInvalid
    │   └── CertificatesInvalid
    ├── ProofFailed                a network is not what it should be: exit 1
    │   ├── TrainMode
    │   ├── WeightsNotFinite
    │   ├── OutputsMismatch
    │   ├── NotRepeatable
    │   ├── BatchMismatch
    │   ├── MomentsMismatch
    │   ├── GoldenMismatch
    │   └── NotWorthIt
    └── RequestError               a request cannot be answered: services/status.py gives each its code
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
        ├── TensorError            tensors are not what the model takes, or break the protocol's rules
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
        ├── ImageError             the bytes sent are not a usable image
        │   ├── ImageEmpty
        │   ├── ImageTooLarge
        │   ├── ImageTooManyPixels
        │   ├── ImageTooComplex
        │   ├── ImageNeedsTooMuchMemory
        │   ├── ImageFormatNotAllowed
        │   └── ImageUnreadable
        ├── PixelsMismatch
        ├── MessageInvalid
        ├── MessageTooLarge
        ├── MessagesFull
        ├── QueueFull
        ├── CallsFull
        ├── StreamsFull
        ├── WatchesFull
        ├── ServerLeaving
        ├── DeadlineExpired
        └── RequestCancelled

An error says what is wrong, with the value and the limit, and what to do. It knows nothing of gRPC.
"""

from __future__ import annotations


class EvalmodeError(Exception):
    """Anything evalmode refuses, with the facts behind the sentence.

    Attributes:
        facts: the values in the message by name, for machines (``size_bytes``, ``limit_bytes``).
        exit_code: what a command exits with.
    """

    exit_code = 2

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = {name: str(value) for name, value in facts.items()}


class UsageError(EvalmodeError):
    """A command or a file it was given is wrong."""


class ArtifactInvalid(UsageError):
    """The file is not an artifact that this version of evalmode can serve."""


class DigestMismatch(ArtifactInvalid):
    """The file's bytes are not those it was sealed with."""


class OperatorNotAllowed(ArtifactInvalid):
    """The graph needs operators or data that are not in the file."""


class Uncertified(ArtifactInvalid):
    """Nobody vouches for what the network answers, and that was not allowed."""


class DecoderMismatch(ArtifactInvalid):
    """Images are decoded to other pixels here than where the certificate was made."""


class ReplayMismatch(ArtifactInvalid):
    """The network answers otherwise than its certificate says."""


class LoadLimitExceeded(ArtifactInvalid):
    """Checking and replaying the artifact takes more time or memory than a server allows for it."""


class TrialUnavailable(UsageError):
    """No process can be started now to check an artifact in."""


class NameInvalid(UsageError):
    """A model's name or version cannot be a folder of a model repository."""


class ProviderUnavailable(UsageError):
    """The execution provider that was asked for does not work here."""


class AddressUnavailable(UsageError):
    """The server cannot listen where it was told to."""


class ThreadsUnavailable(UsageError):
    """The system does not start as many threads as the server needs."""


class TokensInvalid(UsageError):
    """A file of tokens cannot be used."""


class CertificatesInvalid(UsageError):
    """The files for TLS cannot be used."""


class LabelsMismatch(ArtifactInvalid):
    """The labels in the file are not those of its certificate."""


class ProofFailed(EvalmodeError):
    """A network was shown not to be what it should."""

    exit_code = 1


class TrainMode(ProofFailed):
    """Something in the graph acts as in training."""


class WeightsNotFinite(ProofFailed):
    """A weight or a statistic is NaN, infinite, or a variance below 0."""


class OutputsMismatch(ProofFailed):
    """The outputs do not fit the labels, or are no numbers."""


class NotRepeatable(ProofFailed):
    """The same images get other answers the second time."""


class BatchMismatch(ProofFailed):
    """An image gets another answer in a batch than alone."""


class MomentsMismatch(ProofFailed):
    """Batch norm's statistics are not those of what it sees."""


class GoldenMismatch(ProofFailed):
    """Golden images do not get their labels."""


class NotWorthIt(ProofFailed):
    """A faster variant is not fast enough, or not accurate enough."""


class RequestError(EvalmodeError):
    """A request cannot be answered.

    Attributes:
        field: the field of the request that is wrong, as its contract names it; "" where none is.
    """

    def __init__(self, message: str, *, field: str = "", **facts: object) -> None:
        super().__init__(message, **facts)
        self.field = field


class at_field:  # noqa: N801  a context manager, called like a function
    """Say of which field an error is that does not know its request."""

    def __init__(self, field: str) -> None:
        self._field = field

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RequestError):
            error.field = error.field or self._field


class TokenInvalid(RequestError):
    """The server was started with tokens, and the call has none that holds."""


class ControlForbidden(RequestError):
    """The call's token is for predictions, not for loading and unloading models."""


class ControlDisabled(RequestError):
    """Models are loaded and unloaded by calls only where the server was started with ``--enable-control``."""


class NotServed(RequestError):
    """A call of the protocol that this server does not serve: shared memory, tracing, log settings."""


class MethodUnknown(RequestError):
    """A call of a service or a method that this server does not have."""


class ServiceUnknown(RequestError):
    """A health check names a service or a model that is not served."""


class ModelUnspecified(RequestError):
    """The server holds several models and the request names none."""


class ModelNotFound(RequestError):
    """No such model or version is served."""


class ModelInvalid(RequestError):
    """The model's newest version in the repository cannot be loaded."""


class InputMissing(RequestError):
    """The request holds neither an image nor pixels."""


class ImagesNotTaken(RequestError):
    """An image was sent to a model that takes other tensors."""


class TensorError(RequestError):
    """Tensors are not what the model takes, or break the protocol's rules."""


class TensorUnknown(TensorError):
    """The model has no input or output of that name."""


class TensorMissing(TensorError):
    """An input of the model is not in the request."""


class TensorDuplicate(TensorError):
    """An input or a requested output is named twice."""


class DatatypeMismatch(TensorError):
    """A tensor's datatype is not the model's, or none of the protocol's."""


class ShapeMismatch(TensorError):
    """A tensor's shape is not the model's, or inputs differ in their batch."""


class ContentsMixed(TensorError):
    """Raw and typed contents in one request, or contents of a type that is not the datatype's."""


class ContentsMismatch(TensorError):
    """Contents are not as many as shape and datatype say."""


class NotFinite(TensorError):
    """A floating-point input holds NaN or infinity, and ``--allow-nonfinite`` is off."""


class ParameterInvalid(TensorError):
    """A parameter that is not known here or has a value that it cannot have."""


class BatchTooLarge(RequestError):
    """More inputs in one request than ``max_batch``."""


class ImageError(RequestError):
    """The bytes are not a usable image."""


class ImageEmpty(ImageError):
    """There are no bytes."""


class ImageTooLarge(ImageError):
    """More encoded bytes than ``max_image_bytes``."""


class ImageTooManyPixels(ImageError):
    """The header announces more pixels than ``max_image_pixels``."""


class ImageTooComplex(ImageError):
    """Decoding takes more work than the size of the image explains: scans, chunks, segments, run lengths."""


class ImageNeedsTooMuchMemory(ImageError):
    """Decoding takes more memory than ``max_decode_bytes``, which no waiting changes."""


class ImageFormatNotAllowed(ImageError):
    """An image, but of a format that is not served."""


class ImageUnreadable(ImageError):
    """Not an image, or a truncated or damaged one."""


class PixelsMismatch(RequestError):
    """Raw pixels are not of the model's shape, or not as many bytes as their shape says."""


class MessageInvalid(RequestError):
    """The call has no message, or one that cannot be parsed."""


class MessageTooLarge(RequestError):
    """The message, inflated, has more bytes than ``max_request_bytes``."""


class MessageLate(RequestError):
    """The call's message did not come in time."""


class MessagesFull(RequestError):
    """The messages of the requests in flight hold too much memory for one more."""


class QueueFull(RequestError):
    """``max_queue`` requests are in flight in addition to one per slot, or take longer than the deadline allows."""


class CallsFull(RequestError):
    """More calls wait for their message than the server has places for."""


class StreamsFull(RequestError):
    """``max_streams`` streams are open already."""


class WatchesFull(RequestError):
    """``max_watches`` calls watch the health already."""


class ServerLeaving(RequestError):
    """The server is shutting down and takes no new requests."""


class DeadlineExpired(RequestError):
    """The deadline, the caller's or the request's ``timeout``, passed before the network could have run."""


class RequestCancelled(RequestError):
    """The call was cancelled before the network ran."""
