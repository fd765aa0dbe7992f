"""The Open Inference Protocol v2, independent of the transport. It uses the same models and slots as Classifier."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import evalmode
from evalmode.errors import ControlDisabled, NotServed, ParameterInvalid
from evalmode.limits import Limits
from evalmode.runtime.model import Model
from evalmode.wire import open_inference_pb2 as wire
from serving.engine.call import Call, Sooner
from serving.services.descriptions import describe_config, describe_metadata, describe_statistics
from serving.services.figures import Counts, Version
from serving.services.inference import Inference, Read, Reading, Timed
from serving.services.inputs import read_inputs
from serving.services.loaded import LoadedModels
from serving.services.outputs import BINARY_OUTPUTS, choose_form, choose_outputs, write_outputs
from serving.services.status import explain
from serving.services.tensors import BYTES, check_parameters

DESCRIPTOR = wire.DESCRIPTOR.services_by_name["GRPCInferenceService"]
EXTENSIONS = ("classification", "model_configuration", "model_repository", "statistics")
# Request parameters: a deadline in microseconds, and whether the last response of a stream marks itself as the last.
TIMEOUT, MARK_FINAL, FINAL = "timeout", "triton_enable_empty_final_response", "triton_final_response"
DEPENDENTS, VERSION = "unload_dependents", "version"  # parameters of repository control; no model depends on another
REASON, ERROR_ID = "evalmode_reason", "evalmode_id"  # parameters of an error in a stream
NOT_SERVED = "the server supports no shared memory, tracing or log settings: see docs/reference/wire-protocol.md"

Handler = Callable[[Any, Call], Any]


class Refused(Protocol):
    """The description of an error that a client receives."""

    @property
    def message(self) -> str:
        """The error message."""

    @property
    def id(self) -> str:
        """The id of the error in the server's log."""


Refuse = Callable[[Exception], Refused]


class OpenInference:
    """The service of the Open Inference Protocol v2.

    Args:
        models: The models that are served.
        inference: The engine that answers requests.
        limits: Limits on batches and images.
        allow_nonfinite: Whether inputs may hold NaN and infinity.
        enable_control: Whether clients may load and unload models.
        read_counts: Returns the counters of the whole server, for ModelStatistics; by default those of ``inference``.

    Attributes:
        handlers: The handler of each method that neither infers nor streams, by the method's name in the contract.
    """

    def __init__(
        self,
        models: LoadedModels,
        inference: Inference,
        limits: Limits,
        allow_nonfinite: bool = False,
        enable_control: bool = False,
        read_counts: Callable[[], Mapping[Version, Counts]] | None = None,
    ) -> None:
        self._models = models
        self._slots = inference.executor.slots
        self._limits = limits
        self._read_counts = read_counts or inference.statistics.copy
        self._decodes = inference.executor.decodes
        self._allow_nonfinite = allow_nonfinite
        self._enable_control = enable_control
        self._leaving = False
        served: dict[str, Handler] = {
            "ServerLive": lambda request, call: wire.ServerLiveResponse(live=True),
            "ServerReady": lambda request, call: wire.ServerReadyResponse(ready=not self._leaving),
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.load,
            "RepositoryModelUnload": self.unload,
        }
        calls = (method.name for method in DESCRIPTOR.methods if not method.client_streaming)
        self.handlers = {name: served.get(name, _refuse_all) for name in calls if name != "ModelInfer"}

    def announce_shutdown(self) -> None:
        """Report the server as not ready from now on. Requests are still answered."""
        self._leaving = True

    def has_images(self, request: wire.ModelInferRequest) -> bool:
        """See ``Service``."""
        return any(one.datatype == BYTES for one in request.inputs)

    def find(self, request: wire.ModelInferRequest) -> Model:
        """See ``Service``."""
        return self._models.find(request.model_name, request.model_version, field="model_name")

    def begin(self, request: wire.ModelInferRequest, model: Model, call: Call) -> Reading:
        """See ``Service``.

        Args:
            request: The request.
            model: The model that it names.
            call: Its call.

        Raises:
            TensorError: An input, an output or a parameter does not match the model or breaks the protocol's rules.
            BatchTooLarge: The batch exceeds ``max_batch``.
            ImageError: An image is not usable.
            NotServed: The request uses shared memory.
        """
        check_parameters(request.parameters, (TIMEOUT, MARK_FINAL, BINARY_OUTPUTS))
        call = _end_sooner(call, request.parameters[TIMEOUT]) if TIMEOUT in request.parameters else call
        wanted, classes = choose_outputs(request, model)
        raw = choose_form(request, model, [name for name in wanted if name not in classes])
        # ``write`` must not keep the request, which holds the inputs, alive.
        request_id = request.id
        is_marked = MARK_FINAL in request.parameters and request.parameters[MARK_FINAL].bool_param

        def write(timed: Timed) -> wire.ModelInferResponse:
            reply = wire.ModelInferResponse(model_name=model.name, model_version=model.version, id=request_id)
            if is_marked:
                reply.parameters[FINAL].bool_param = True  # a request has exactly one response, so it is the last
            outputs = {name: timed.outputs[name] for name in wanted}
            write_outputs(reply, outputs, classes, model.manifest.labels, raw)
            return reply

        sent = read_inputs(request, model, self._limits, self._allow_nonfinite, self._decodes)
        optional = tuple(name for name in model.optional.names if name in wanted)
        return Reading(sent.cost_bytes, lambda: Read(sent.decode(call), write, call, optional), call)

    def make_stream_reply(
        self, request: wire.ModelInferRequest, outcome: wire.ModelInferResponse | Exception, refuse: Refuse
    ) -> wire.ModelStreamInferResponse:
        """The reply to one request of a stream. An error does not end the stream.

        Args:
            request: The request; its inputs may be missing.
            outcome: Its response or its error.
            refuse: Logs an error and returns its description for the client.
        """
        if not isinstance(outcome, Exception):
            return wire.ModelStreamInferResponse(infer_response=outcome)
        failed = wire.ModelInferResponse(model_name=request.model_name, id=request.id)
        refusal = refuse(outcome)
        failed.parameters[REASON].string_param = explain(outcome)[1]
        failed.parameters[ERROR_ID].string_param = refusal.id
        return wire.ModelStreamInferResponse(error_message=refusal.message, infer_response=failed)

    def model_ready(self, request: wire.ModelReadyRequest, call: Call) -> wire.ModelReadyResponse:
        """Whether a model is loaded. An unknown model is not ready, which is no error.

        Args:
            request: Names the model.
            call: Not used.
        """
        ready = any(one.name == request.name and request.version in ("", one.version) for one in self._models.loaded)
        return wire.ModelReadyResponse(ready=ready and not self._leaving)

    def server_metadata(self, request: wire.ServerMetadataRequest, call: Call) -> wire.ServerMetadataResponse:
        """The name and version of the server, and the protocol extensions that it supports.

        Args:
            request: Not used.
            call: Not used.
        """
        return wire.ServerMetadataResponse(name="evalmode", version=evalmode.__version__, extensions=EXTENSIONS)

    def model_metadata(self, request: wire.ModelMetadataRequest, call: Call) -> wire.ModelMetadataResponse:
        """The inputs, outputs and properties of a model.

        Args:
            request: Names the model.
            call: Not used.

        Raises:
            ModelNotFound: No such model is loaded.
            ModelUnspecified: Several models are loaded and the request names none.
        """
        model = self._find(request)
        return describe_metadata(model, [one.version for one in self._models.loaded if one.name == model.name])

    def model_config(self, request: wire.ModelConfigRequest, call: Call) -> wire.ModelConfigResponse:
        """How a model is served, in Triton's model configuration format.

        Args:
            request: Names the model.
            call: Not used.

        Raises:
            ModelNotFound: No such model is loaded.
            ModelUnspecified: Several models are loaded and the request names none.
        """
        config = describe_config(self._find(request), self._limits.max_batch, self._slots)
        return wire.ModelConfigResponse(config=config)

    def model_statistics(self, request: wire.ModelStatisticsRequest, call: Call) -> wire.ModelStatisticsResponse:
        """The counters of one model, or of all loaded models.

        Args:
            request: Names the model; "" selects all.
            call: Not used.

        Raises:
            ModelNotFound: No such model is loaded.
        """
        models = [self._find(request)] if request.name else self._models.loaded
        versions = [(model.name, model.version) for model in models]
        counts = self._read_counts()
        return wire.ModelStatisticsResponse(
            model_stats=[describe_statistics(version, counts.get(version, Counts())) for version in versions]
        )

    def repository_index(self, request: wire.RepositoryIndexRequest, call: Call) -> wire.RepositoryIndexResponse:
        """The versions in the repository.

        Args:
            request: Whether only loaded versions are listed.
            call: Not used.
        """
        return wire.RepositoryIndexResponse(
            models=[
                wire.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
                for entry in self._models.list_entries()
                if entry.ready or not request.ready
            ]
        )

    def load(self, request: wire.RepositoryModelLoadRequest, call: Call) -> wire.RepositoryModelLoadResponse:
        """Load the newest version of a model.

        Args:
            request: Names the model.
            call: Its deadline limits the wait. The model is loaded even if the deadline passes.

        Raises:
            ControlDisabled: The server was started without ``--enable-control``.
            ParameterInvalid: A parameter is not supported.
            ModelNotFound: The repository has no such model.
            ModelInvalid: Its newest version cannot be loaded.
            DeadlineExpired: The version is still being checked.
        """
        remaining_s = min(call.deadline - time.monotonic(), threading.TIMEOUT_MAX)
        self._models.load(self._controlled(request, DEPENDENTS), remaining_s)
        return wire.RepositoryModelLoadResponse()

    def unload(self, request: wire.RepositoryModelUnloadRequest, call: Call) -> wire.RepositoryModelUnloadResponse:
        """Unload a model, or one version of it, so that the version before it answers.

        Args:
            request: Names the model, and the version in the parameter ``version``.
            call: Not used.

        Raises:
            ControlDisabled: The server was started without ``--enable-control``.
            ParameterInvalid: A parameter is not supported.
            ModelNotFound: The model is not loaded.
        """
        name = self._controlled(request, DEPENDENTS, VERSION)
        version = request.parameters[VERSION].string_param if VERSION in request.parameters else ""
        self._models.unload(name, version)
        return wire.RepositoryModelUnloadResponse()

    def _find(self, request: Any) -> Model:
        return self._models.find(request.name, request.version, field="name")

    def _controlled(
        self, request: wire.RepositoryModelLoadRequest | wire.RepositoryModelUnloadRequest, *parameters: str
    ) -> str:
        """The name of the model to load or unload. Some clients send it in field 1 instead of 2."""
        if not self._enable_control:
            raise ControlDisabled("loading and unloading by calls is disabled: start the server with --enable-control")
        check_parameters(request.parameters, parameters)
        return request.model_name or request.repository_name


def _end_sooner(call: Call, timeout: wire.InferParameter) -> Call:
    """The call with the deadline of the parameter ``timeout``, in microseconds; 0 sets no deadline."""
    kind = timeout.WhichOneof("parameter_choice")
    timeout_us = getattr(timeout, kind) if kind in ("int64_param", "uint64_param") else -1
    if timeout_us < 0:
        raise ParameterInvalid(f"{TIMEOUT} must be an integer of microseconds, at least 0", field="parameters")
    return Sooner(call, call.arrived + timeout_us / 1e6) if timeout_us else call


def _refuse_all(request: Any, call: Call) -> Any:
    raise NotServed(NOT_SERVED)
