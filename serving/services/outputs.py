"""The outputs of the Open Inference Protocol: which ones a request asks for, in which form, and writing them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from evalmode.artifact.tensors import Array, Tensors
from evalmode.errors import ParameterInvalid, TensorDuplicate, TensorUnknown
from evalmode.runtime.model import Model
from evalmode.wire import open_inference_pb2 as wire
from serving.services.tensors import BYTES, DATATYPES, LENGTH, TYPED, check_parameters

CLASSIFICATION = "classification"  # output parameter
# Whether outputs are returned as raw contents, for all outputs of a request and for one output. They come from the
# binary tensor data extension of KServe and Triton, which is defined for HTTP. In gRPC, all outputs of a reply have the
# same form.
BINARY_OUTPUTS, BINARY_OUTPUT = "binary_data_output", "binary_data"


def choose_outputs(request: wire.ModelInferRequest, model: Model) -> tuple[list[str], dict[str, int]]:
    """Read which outputs a request asks for.

    Args:
        request: The request.
        model: The model that it names.

    Returns:
        The names of the outputs in the requested order, by default all that are not optional, and the number of labels
        for each output that is requested as classification.

    Raises:
        TensorUnknown: The model has no such output.
        TensorDuplicate: An output is requested twice.
        ParameterInvalid: A parameter is not supported, or has an invalid value.
        NotServed: The request uses shared memory.
    """
    shapes = {output.name: output.shape for output in (*model.outputs, *model.optional.tensors)}
    names: list[str] = []
    classes: dict[str, int] = {}
    for place, wanted in enumerate(request.outputs):
        field = f"outputs[{place}]"
        if wanted.name not in shapes:
            raise TensorUnknown(
                f"the model has no output {wanted.name!r}; its outputs are {', '.join(shapes)}", field=f"{field}.name"
            )
        if wanted.name in names:
            raise TensorDuplicate(f"output {wanted.name!r} is requested twice", field=f"{field}.name")
        check_parameters(wanted.parameters, (CLASSIFICATION, BINARY_OUTPUT), f"{field}.")
        names.append(wanted.name)
        if CLASSIFICATION in wanted.parameters:
            count = wanted.parameters[CLASSIFICATION].int64_param
            if count < 1 or len(shapes[wanted.name]) != 1:
                raise ParameterInvalid(
                    f"{CLASSIFICATION} {count} of output {wanted.name!r}: it must be at least 1, and the output must "
                    "have one value per label",
                    field=f"{field}.parameters",
                )
            classes[wanted.name] = count
    return names or [output.name for output in model.outputs], classes


def choose_form(request: wire.ModelInferRequest, model: Model, numbers: Collection[str]) -> bool:
    """Whether the outputs are returned as raw contents. By default, they have the form of the inputs.

    Args:
        request: The request.
        model: The model that it names.
        numbers: The names of the outputs that are returned as numbers, not as labels.

    Raises:
        ParameterInvalid: The parameters of the outputs differ, or an output has no typed contents.
    """
    wishes = {}  # the requested form, by field
    for place, wanted in enumerate(request.outputs):
        if BINARY_OUTPUT in wanted.parameters:
            field = f"outputs[{place}].parameters"
            wishes[field] = _read_bool(BINARY_OUTPUT, wanted.parameters[BINARY_OUTPUT], field)
    if BINARY_OUTPUTS in request.parameters:
        wish = _read_bool(BINARY_OUTPUTS, request.parameters[BINARY_OUTPUTS], "parameters")
        if not request.outputs or len(wishes) < len(request.outputs):  # an output has no parameter of its own
            wishes["parameters"] = wish
    if not wishes:
        return bool(request.raw_input_contents)
    field, raw = wishes.popitem()
    if (not raw) in wishes.values():
        raise ParameterInvalid(
            f"{BINARY_OUTPUT} differs between outputs: in gRPC, either all outputs of a reply are raw or all are typed",
            field=field,
        )
    outputs = (one for one in (*model.outputs, *model.optional.tensors) if one.name in numbers)
    untyped = [one.name for one in outputs if DATATYPES[one.dtype] not in TYPED]
    if untyped and not raw:
        raise ParameterInvalid(f"output {untyped[0]} has no typed contents: request raw contents", field=field)
    return raw


def write_outputs(
    reply: wire.ModelInferResponse, outputs: Tensors, classes: dict[str, int], labels: tuple[str, ...], raw: bool
) -> None:
    """Add outputs to a reply.

    Args:
        reply: The reply.
        outputs: The outputs by name, in the requested order, with the batch as the first axis.
        classes: The number of labels for each output that is returned as classification.
        labels: The labels of the model.
        raw: Whether to write raw contents. Typed contents are written otherwise, if every datatype has them.
    """
    raw = raw or any(DATATYPES[array.dtype] not in TYPED for array in outputs.values())
    for name, array in outputs.items():
        values = _classify(array, classes[name], labels) if name in classes else array
        datatype = BYTES if name in classes else DATATYPES[array.dtype]
        sent = reply.outputs.add(name=name, datatype=datatype, shape=values.shape)
        if raw and datatype == BYTES:
            reply.raw_output_contents.append(b"".join(LENGTH.pack(len(one)) + one for one in values.flat))
        elif raw:
            reply.raw_output_contents.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        else:
            getattr(sent.contents, TYPED[datatype]).extend(values.ravel().tolist())


def _classify(array: Array, count: int, labels: tuple[str, ...]) -> Array:
    """The highest values of each row as ``value:index:label``, object (N, count); the lowest index wins a tie."""
    best = np.argsort(-array.astype(np.float64), axis=1, kind="stable")[:, :count]
    named = len(labels) == array.shape[1]
    rows = [
        [f"{row[index]:f}:{index}{':' + labels[index] if named else ''}".encode() for index in chosen]
        for row, chosen in zip(array, best, strict=True)
    ]
    return np.array(rows, object)


def _read_bool(name: str, parameter: wire.InferParameter, field: str) -> bool:
    if parameter.WhichOneof("parameter_choice") != "bool_param":
        raise ParameterInvalid(f"{name} must be a bool_param", field=field)
    return parameter.bool_param
