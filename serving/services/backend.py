"""What a transport serves: the services of both protocols, the engine that answers them, and the rules for callers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evalmode.limits import Limits
from serving.engine.shared_limits import Alone, Count
from serving.services.access import Access
from serving.services.classifier import Classifier
from serving.services.inference import Inference
from serving.services.open_inference import OpenInference


@dataclass(frozen=True)
class Backend:
    """Everything that a transport needs to answer calls.

    Attributes:
        classifier: The service of ``evalmode.v1``.
        open_inference: The service of the Open Inference Protocol.
        inference: The engine that answers the requests of both.
        limits: Limits on messages, streams, watches and connections.
        access: Authorizes calls; None: every call is allowed.
        reflection: Whether server reflection is available.
        count: Returns what counts something in all workers, by its name.
    """

    classifier: Classifier
    open_inference: OpenInference
    inference: Inference
    limits: Limits
    access: Access | None = None
    reflection: bool = True
    count: Callable[[str], Count] = Alone
