"""What can go wrong, in the order in which a request flows.

::

    EvalmodeError
    ├── UsageError                 a command or a file is wrong: one line, exit 2
    │   ├── ArtifactInvalid
    │   ├── NameInvalid
    │   ├── ProviderUnavailable
    │   └── AddressUnavailable
    └── RequestError               a request cannot be answered: services/status.py gives each its code
        ├── InputMissing
        ├── ImageError             the bytes sent are not a usable image
        │   ├── ImageEmpty
        │   ├── ImageTooLarge
        │   ├── ImageTooManyPixels
        │   ├── ImageFormatNotAllowed
        │   └── ImageUnreadable
        ├── PixelsMismatch
        ├── ModelUnspecified
        ├── ModelNotFound
        ├── QueueFull
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


class NameInvalid(UsageError):
    """A model's name or version cannot be a folder of a model repository."""


class ProviderUnavailable(UsageError):
    """The execution provider that was asked for does not work here."""


class AddressUnavailable(UsageError):
    """The server cannot listen where it was told to."""


class RequestError(EvalmodeError):
    """A request cannot be answered."""


class InputMissing(RequestError):
    """The request holds neither an image nor pixels."""


class ImageError(RequestError):
    """The bytes are not a usable image."""


class ImageEmpty(ImageError):
    """There are no bytes."""


class ImageTooLarge(ImageError):
    """More encoded bytes than ``max_image_bytes``."""


class ImageTooManyPixels(ImageError):
    """The header announces more pixels than ``max_image_pixels``."""


class ImageFormatNotAllowed(ImageError):
    """An image, but of a format that is not served."""


class ImageUnreadable(ImageError):
    """Not an image, or a truncated or damaged one."""


class PixelsMismatch(RequestError):
    """Raw pixels are not of the model's shape, or not as many bytes as their shape says."""


class ModelUnspecified(RequestError):
    """The server holds several models and the request names none."""


class ModelNotFound(RequestError):
    """No such model or version is served."""


class QueueFull(RequestError):
    """``max_queue`` requests wait already."""


class DeadlineExpired(RequestError):
    """The caller's deadline passed before the network ran; it never did."""


class RequestCancelled(RequestError):
    """The caller went away before the network ran; it never did."""
