"""The Open Inference Protocol v2: what it asks for, answered by the models and the batcher that Classifier uses."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import evalmode
from evalmode.errors import ControlDisabled, NotServed, ParameterInvalid, TensorDuplicate, TensorUnknown
from evalmode.limits import Limits
from evalmode.runtime.model import Model, Tensor
from evalmode.wire import model_config_pb2 as config
from evalmode.wire import open_inference_pb2 as wire
from serving.engine.batch import Call
from serving.engine.decoding import DecodeBudget
from serving.services.inference import Read, Reading, Timed
from serving.services.models import Models
from serving.services.statistics import Statistics
from serving.services.status import explain
from serving.services.tensors import BYTES, DATATYPES, TYPED, check_parameters, read_inputs, write_outputs

DESCRIPTOR = wire.DESCRIPTOR.services_by_name["GRPCInferenceService"]
PLATFORM = "onnx_onnxv1"
EXTENSIONS = ("classification", "model_configuration", "model_repository", "statistics")
# Parameters of a request: its own deadline in microseconds, and whether its last answer is to say that it is.
TIMEOUT, MARK_FINAL, FINAL = "timeout", "triton_enable_empty_final_response", "triton_final_response"
CLASSIFICATION = "classification"  # of an output
# Whether outputs come as raw contents: all of a request, and one. Of the binary tensor data extension of KServe and
# Triton, which is made for HTTP; gRPC has one form for all outputs of a reply.
BINARY_OUTPUTS, BINARY_OUTPUT = "binary_data_output", "binary_data"
DEPENDENTS, VERSION = "unload_dependents", "version"  # of repository control; here no model depends on another
REASON, ERROR_ID = "evalmode_reason", "evalmode_id"  # parameters of a stream's answer that is an error
NOT_SERVED = "this server does not serve shared memory, tracing or log settings: see docs/wire-protocol.md"

Handler = Callable[[Any, Call], Any]


class Refused(Protocol):
    """What a client is told of an error: words, and the id under which the log has it."""

    @property
    def message(self) -> str:
        """For people."""

    @property
    def id(self) -> str:
        """For the log."""


Refuse = Callable[[Exception], Refused]


class OpenInference:
    """Answers the protocol's calls.

    Args:
        models: What is served.
        slots: How many inferences run at the same time, for ModelConfig.
        limits: Of a batch and its images.
        statistics: For ModelStatistics.
        budget: Where images are decoded.
        allow_nonfinite: Whether NaN and infinity in inputs are let through.
        enable_control: Whether clients may load and unload models.

    Attributes:
        handlers: What answers each call that is no stream and does not infer, by its name in the contract.
    """

    def __init__(
        self,
        models: Models,
        slots: int,
        limits: Limits,
        statistics: Statistics,
        budget: DecodeBudget,
        allow_nonfinite: bool = False,
        enable_control: bool = False,
    ) -> None:
        self._models = models
        self._slots = slots
        self._limits = limits
        self._statistics = statistics
        self._budget = budget
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
        """Be ready no more, for good, while requests are still answered."""
        self._leaving = True

    def has_images(self, request: wire.ModelInferRequest) -> bool:
        """See ``Service``."""
        return any(one.datatype == BYTES for one in request.inputs)

    def find(self, request: wire.ModelInferRequest) -> Model:
        """See ``Service``."""
        return self._models.find(request.model_name, request.model_version, field="model_name")

    def begin(self, request: wire.ModelInferRequest, model: Model, call: Call) -> Reading:
        """See ``Service``.

        Raises:
            RequestError: See services/status.py.
        """
        check_parameters(request.parameters, (TIMEOUT, MARK_FINAL, BINARY_OUTPUTS))
        call = _end_sooner(call, request.parameters[TIMEOUT]) if TIMEOUT in request.parameters else call
        wanted, classes = _choose_outputs(request, model)
        raw = _choose_form(request, model, [name for name in wanted if name not in classes])

        def write(timed: Timed) -> wire.ModelInferResponse:
            reply = wire.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
            if MARK_FINAL in request.parameters and request.parameters[MARK_FINAL].bool_param:
                reply.parameters[FINAL].bool_param = True  # there is one answer to a request here, so it is the last
            outputs = {name: timed.outputs[name] for name in wanted}
            write_outputs(reply, outputs, classes, model.manifest.labels, raw)
            return reply

        sent = read_inputs(request, model, self._limits, self._allow_nonfinite, self._budget)
        return Reading(sent.cost_bytes, lambda: Read(sent.decode(call), write, call), call)

    def make_stream_reply(
        self, request: wire.ModelInferRequest, outcome: wire.ModelInferResponse | Exception, refuse: Refuse
    ) -> wire.ModelStreamInferResponse:
        """The reply to one request of a stream; an error does not end the stream.

        Args:
            request: It.
            outcome: Its answer, or its error.
            refuse: Describes an error to a client.
        """
        if not isinstance(outcome, Exception):
            return wire.ModelStreamInferResponse(infer_response=outcome)
        failed = wire.ModelInferResponse(model_name=request.model_name, id=request.id)
        refusal = refuse(outcome)
        failed.parameters[REASON].string_param = explain(outcome)[1]
        failed.parameters[ERROR_ID].string_param = refusal.id
        return wire.ModelStreamInferResponse(error_message=refusal.message, infer_response=failed)

    def model_ready(self, request: wire.ModelReadyRequest, call: Call) -> wire.ModelReadyResponse:
        """Whether a model is served; one that nobody knows is not."""
        ready = any(one.name == request.name and request.version in ("", one.version) for one in self._models.loaded)
        return wire.ModelReadyResponse(ready=ready and not self._leaving)

    def server_metadata(self, request: wire.ServerMetadataRequest, call: Call) -> wire.ServerMetadataResponse:
        """Who answers, and what of the protocol's extensions."""
        return wire.ServerMetadataResponse(name="evalmode", version=evalmode.__version__, extensions=EXTENSIONS)

    def model_metadata(self, request: wire.ModelMetadataRequest, call: Call) -> wire.ModelMetadataResponse:
        """A model's inputs and outputs, and what its artifact says about itself."""
        model = self._find(request)
        return wire.ModelMetadataResponse(
            name=model.name,
            versions=[one.version for one in self._models.loaded if one.name == model.name],
            platform=PLATFORM,
            inputs=map(_describe, model.inputs),
            outputs=map(_describe, model.outputs),
            properties=describe_properties(model),
        )

    def model_config(self, request: wire.ModelConfigRequest, call: Call) -> wire.ModelConfigResponse:
        """How a model is served, in the words of the protocol's configuration."""
        model = self._find(request)
        largest = min(self._limits.max_batch, model.max_batch)
        kind = config.ModelInstanceGroup.KIND_GPU if model.provider.is_gpu else config.ModelInstanceGroup.KIND_CPU
        return wire.ModelConfigResponse(
            config=config.ModelConfig(
                name=model.name,
                platform=PLATFORM,
                backend="onnxruntime",
                max_batch_size=self._limits.max_batch,
                version_policy=config.ModelVersionPolicy(latest=config.ModelVersionPolicy.Latest(num_versions=1)),
                input=[
                    config.ModelInput(
                        name=one.name, data_type=_config_type(one), dims=one.shape, format=_choose_format(model, one)
                    )
                    for one in model.inputs
                ],
                output=[
                    config.ModelOutput(name=one.name, data_type=_config_type(one), dims=one.shape)
                    for one in model.outputs
                ],
                instance_group=[config.ModelInstanceGroup(name=model.name, kind=kind, count=self._slots)],
                dynamic_batching=config.ModelDynamicBatching(preferred_batch_size=[largest]),
                default_model_filename="model.onnx",
                parameters={
                    name: config.ModelParameter(string_value=value)
                    for name, value in describe_properties(model).items()
                },
            )
        )

    def model_statistics(self, request: wire.ModelStatisticsRequest, call: Call) -> wire.ModelStatisticsResponse:
        """Counts of one model, or of all that are loaded."""
        wanted = [self._find(request)] if request.name else self._models.loaded
        return wire.ModelStatisticsResponse(model_stats=[self._statistics.tell(model) for model in wanted])

    def repository_index(self, request: wire.RepositoryIndexRequest, call: Call) -> wire.RepositoryIndexResponse:
        """Every version in the repository, or those that are served."""
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
        """Serve the newest version of a model."""
        self._models.load(self._controlled(request, DEPENDENTS), call.time_remaining_s())
        return wire.RepositoryModelLoadResponse()

    def unload(self, request: wire.RepositoryModelUnloadRequest, call: Call) -> wire.RepositoryModelUnloadResponse:
        """Serve a model no longer, or one version of it: then the one before answers at once."""
        name = self._controlled(request, DEPENDENTS, VERSION)
        version = request.parameters[VERSION].string_param if VERSION in request.parameters else ""
        self._models.unload(name, version)
        return wire.RepositoryModelUnloadResponse()

    def _find(self, request: Any) -> Model:
        return self._models.find(request.name, request.version, field="name")

    def _controlled(
        self, request: wire.RepositoryModelLoadRequest | wire.RepositoryModelUnloadRequest, *parameters: str
    ) -> str:
        """The model that a client wants changed, if clients may; some of them number its name 1 instead of 2."""
        if not self._enable_control:
            raise ControlDisabled("models are not loaded or unloaded by calls: start the server with --enable-control")
        check_parameters(request.parameters, parameters)
        return request.model_name or request.repository_name


@dataclass(frozen=True)
class _Sooner:
    """A call whose request may not wait as long as its caller would."""

    call: Call
    until: float

    def time_remaining_s(self) -> float:
        return min(self.call.time_remaining_s(), self.until - time.monotonic())

    def waited_s(self) -> float:
        return self.call.waited_s()

    def cancelled(self) -> bool:
        return self.call.cancelled()


def _end_sooner(call: Call, timeout: wire.InferParameter) -> Call:
    """The call as its parameter ``timeout`` says: microseconds, 0 for none."""
    kind = timeout.WhichOneof("parameter_choice")
    timeout_us = getattr(timeout, kind) if kind in ("int64_param", "uint64_param") else -1
    if timeout_us < 0:
        raise ParameterInvalid(f"{TIMEOUT} is a number of microseconds, at least 0", field="parameters")
    return _Sooner(call, time.monotonic() - call.waited_s() + timeout_us / 1e6) if timeout_us else call


def describe_properties(model: Model) -> Mapping[str, str]:
    """What is known of a model, as JSON values by name; never its golden images."""
    certificate = model.manifest.certificate
    facts = {
        **model.manifest.properties,
        "labels": model.manifest.labels,
        "digest": model.digest,
        "provider": model.provider.name,
        "batch_invariant": model.batch_invariant,
        "certificate": certificate and {"golden": certificate.golden_count, "tolerance": certificate.tolerance},
    }
    return {name: json.dumps(value) for name, value in facts.items()}


def _choose_outputs(request: wire.ModelInferRequest, model: Model) -> tuple[list[str], dict[str, int]]:
    """The names of the outputs wanted, and how many labels of those that are wanted as labels."""
    shapes = {output.name: output.shape for output in model.outputs}
    names: list[str] = []
    classes: dict[str, int] = {}
    for place, wanted in enumerate(request.outputs):
        field = f"outputs[{place}]"
        if wanted.name not in shapes:
            raise TensorUnknown(
                f"the model has no output {wanted.name!r}, it gives {', '.join(shapes)}", field=f"{field}.name"
            )
        if wanted.name in names:
            raise TensorDuplicate(f"output {wanted.name!r} is wanted twice", field=f"{field}.name")
        check_parameters(wanted.parameters, (CLASSIFICATION, BINARY_OUTPUT), f"{field}.")
        names.append(wanted.name)
        if CLASSIFICATION in wanted.parameters:
            count = wanted.parameters[CLASSIFICATION].int64_param
            if count < 1 or len(shapes[wanted.name]) != 1:
                raise ParameterInvalid(
                    f"classification {count} of {wanted.name}: it is a number of labels, at least 1, of an output "
                    "with a value for each",
                    field=f"{field}.parameters",
                )
            classes[wanted.name] = count
    return names or list(shapes), classes


def _choose_form(request: wire.ModelInferRequest, model: Model, numbers: Collection[str]) -> bool:
    """Whether the outputs come as raw contents: as the request says, else as its inputs came.

    Args:
        request: It.
        model: That it asks for.
        numbers: The outputs that come as numbers.

    Raises:
        ParameterInvalid: One reply cannot be so.
    """
    wishes = {}  # by field
    for place, wanted in enumerate(request.outputs):
        if BINARY_OUTPUT in wanted.parameters:
            field = f"outputs[{place}].parameters"
            wishes[field] = _read_bool(BINARY_OUTPUT, wanted.parameters[BINARY_OUTPUT], field)
    if BINARY_OUTPUTS in request.parameters:
        wish = _read_bool(BINARY_OUTPUTS, request.parameters[BINARY_OUTPUTS], "parameters")
        if not request.outputs or len(wishes) < len(request.outputs):  # some output has no wish of its own
            wishes["parameters"] = wish
    if not wishes:
        return bool(request.raw_input_contents)
    field, raw = wishes.popitem()
    if (not raw) in wishes.values():
        raise ParameterInvalid(
            f"{BINARY_OUTPUT} differs between outputs: in gRPC all outputs of a reply are raw, or all are typed",
            field=field,
        )
    untyped = [one.name for one in model.outputs if one.name in numbers and DATATYPES[one.dtype] not in TYPED]
    if untyped and not raw:
        raise ParameterInvalid(f"output {untyped[0]} has no typed contents: ask for raw ones", field=field)
    return raw


def _read_bool(name: str, parameter: wire.InferParameter, field: str) -> bool:
    if parameter.WhichOneof("parameter_choice") != "bool_param":
        raise ParameterInvalid(f"{name} is true or false, as bool_param", field=field)
    return parameter.bool_param


def _describe(tensor: Tensor) -> wire.ModelMetadataResponse.TensorMetadata:
    return wire.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=DATATYPES[tensor.dtype], shape=(-1, *tensor.shape)
    )


def _config_type(tensor: Tensor) -> config.DataType:
    return getattr(config, f"TYPE_{DATATYPES[tensor.dtype]}")  # type: ignore[no-any-return]


def _choose_format(model: Model, tensor: Tensor) -> config.ModelInput.Format:
    takes_images = tensor.name in model.manifest.image_inputs
    return config.ModelInput.FORMAT_NHWC if takes_images else config.ModelInput.FORMAT_NONE


def _refuse_all(request: Any, call: Call) -> Any:
    raise NotServed(NOT_SERVED)
