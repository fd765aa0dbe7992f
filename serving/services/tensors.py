"""The Open Inference Protocol's rules of tensor data: a request's inputs as arrays, arrays as a reply's outputs.

Source of the rules: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_grpc.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from evalmode.artifact.tensors import DTYPES, INPUT, Array, Tensors
from evalmode.errors import (
    BatchTooLarge,
    ContentsMismatch,
    ContentsMixed,
    DatatypeMismatch,
    NotFinite,
    NotServed,
    ParameterInvalid,
    ShapeMismatch,
    TensorDuplicate,
    TensorMissing,
    TensorUnknown,
    at_field,
)
from evalmode.images.headers import Header, read_header
from evalmode.images.pixels import PixelContract
from evalmode.limits import Limits
from evalmode.runtime.model import Model, Tensor
from evalmode.wire import open_inference_pb2 as wire
from serving.engine.batch import Call, check_alive
from serving.engine.decoding import DecodeBudget, count_decode_bytes, decode_requested

BYTES = "BYTES"
DATATYPES = {np.dtype(name): name.upper().replace("FLOAT", "FP") for name in DTYPES}  # numpy's -> the protocol's
TYPED = {  # datatype -> the field of its typed contents; FP16 has none
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
LENGTH = struct.Struct("<I")  # before each element of raw BYTES
MOST_ELEMENTS = 2**31  # more than the largest message has bytes; below it, no array is too big for numpy

INPUT_PARAMETERS = ("binary_data_size",)  # the KServe SDK sends it by default: the length of the raw contents

Input = wire.ModelInferRequest.InferInputTensor


@dataclass(frozen=True, eq=False)
class Sent:
    """A request's inputs.

    Attributes:
        arrays: Those that are numbers, by name, the batch along the first axis of each.
        images: Headers of encoded images, sent as BYTES.
        contract: The pixels that the images become.
        field: The field that the images are in.
        cost_bytes: The memory that decoding them takes at once; 0 where there are none.
    """

    arrays: Tensors
    images: Sequence[Header] = ()
    contract: PixelContract | None = None
    field: str = ""
    cost_bytes: int = 0

    def decode(self, call: Call) -> Tensors:
        """All inputs as the model takes them.

        Args:
            call: No further image is decoded once it is cancelled or too late.

        Raises:
            ImageError: An image is damaged.
        """
        if self.contract is None:
            return self.arrays
        pixels = []
        for number, header in enumerate(self.images):
            check_alive(call)
            with at_field(f"{self.field}[{number}]"):
                pixels.append(decode_requested(header, self.contract))
        return {**self.arrays, INPUT: np.stack(pixels)}


def read_inputs(
    request: wire.ModelInferRequest, model: Model, limits: Limits, allow_nonfinite: bool, budget: DecodeBudget
) -> Sent:
    """A request's inputs, checked.

    Args:
        request: Raw or typed contents.
        model: That is asked for.
        limits: Of a batch and its images.
        allow_nonfinite: Whether NaN and infinity are let through.
        budget: Where images will be decoded.

    Raises:
        TensorError, BatchTooLarge, ImageError: what is wrong, and in which field.
    """
    _check_names(request, model)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise ContentsMismatch(
            f"{len(request.inputs)} inputs but {len(raw)} raw contents: one is wanted for each, in the same order",
            field="raw_input_contents",
        )
    read: dict[str, Array] = {}
    images = Sent(read)
    for place, sent in enumerate(request.inputs):
        field = f"inputs[{place}]"
        if raw and sent.HasField("contents"):
            raise ContentsMixed(
                f"{sent.name} has typed contents beside raw ones: choose one for the whole request",
                field=f"{field}.contents",
            )
        shape = _check_shape(sent, field)
        if shape[0] > limits.max_batch:
            raise BatchTooLarge(
                f"a batch of {shape[0]}, the limit is {limits.max_batch}: send several requests",
                field=f"{field}.shape",
                size_inputs=shape[0],
                limit_inputs=limits.max_batch,
            )
        content = raw[place] if raw else None
        wanted = next(tensor for tensor in model.inputs if tensor.name == sent.name)
        if sent.datatype == BYTES and sent.name in model.manifest.image_inputs:
            encoded = _read_encoded(sent, content, shape, field)
            contract = model.manifest.image_inputs[sent.name]
            images = _announce_images(encoded, read, contract, limits, budget, field)
        else:
            read[sent.name] = _read_numbers(sent, content, shape, wanted, field)
    batches = [len(array) for array in read.values()] + ([len(images.images)] if images.contract else [])
    if len(set(batches)) > 1:
        raise ShapeMismatch(f"inputs of different batches: {batches}", field="inputs")
    if not allow_nonfinite:
        _check_finite(read)
    return images


def _check_names(request: wire.ModelInferRequest, model: Model) -> None:
    wanted = [tensor.name for tensor in model.inputs]
    sent = [one.name for one in request.inputs]
    for place, name in enumerate(sent):
        if name not in wanted:
            raise TensorUnknown(
                f"the model has no input {name!r}, it takes {', '.join(wanted)}", field=f"inputs[{place}].name"
            )
        if name in sent[:place]:
            raise TensorDuplicate(f"input {name!r} is given twice", field=f"inputs[{place}].name")
        check_parameters(request.inputs[place].parameters, INPUT_PARAMETERS, f"inputs[{place}].")
    missing = [name for name in wanted if name not in sent]
    if missing:
        raise TensorMissing(f"input {', '.join(missing)} is missing, of {', '.join(wanted)}", field="inputs")


def check_parameters(sent: Mapping[str, Any], known: Sequence[str], owner: str = "") -> None:
    """Refuse what is not done here, rather than let a client believe that it was.

    Args:
        sent: parameters of a request, of an input or of an output, by name.
        known: the names that may be there.
        owner: whose they are: "" or ``inputs[0].``.

    Raises:
        NotServed, ParameterInvalid: another is there.
    """
    unknown = sorted(set(sent) - set(known))
    if "shared_memory_region" in unknown:
        raise NotServed("shared memory is not served: contents travel in the messages", field=f"{owner}parameters")
    if unknown:
        raise ParameterInvalid(
            f"parameters {', '.join(unknown)} are not served; here: {', '.join(known) or 'none'}",
            field=f"{owner}parameters",
        )


def _check_shape(sent: Input, field: str) -> tuple[int, ...]:
    shape = tuple(sent.shape)
    if not shape or min(shape) < 0 or shape[0] == 0:
        raise ShapeMismatch(
            f"{sent.name} has the shape {_by(shape)}: the first axis is the batch, at least 1", field=f"{field}.shape"
        )
    return shape


def _read_numbers(sent: Input, raw: bytes | None, shape: tuple[int, ...], wanted: Tensor, field: str) -> Array:
    datatype = DATATYPES[wanted.dtype]
    if sent.datatype != datatype:
        raise DatatypeMismatch(
            f"{sent.name} is {sent.datatype or 'of no datatype'}, the model wants {datatype}", field=f"{field}.datatype"
        )
    if len(shape) != 1 + len(wanted.shape) or any(
        side not in (-1, given) for side, given in zip(wanted.shape, shape[1:], strict=True)
    ):
        raise ShapeMismatch(
            f"{sent.name} is {_by(shape)}, the model wants {_by(('N', *wanted.shape))}", field=f"{field}.shape"
        )
    if math.prod(max(side, 1) for side in shape) >= MOST_ELEMENTS:
        raise ShapeMismatch(f"{sent.name} is {_by(shape)}: no request holds so much", field=f"{field}.shape")
    if raw is None:
        return _read_typed(sent, math.prod(shape), wanted.dtype, datatype, field).reshape(shape)
    size = math.prod(shape) * wanted.dtype.itemsize  # of Python's integers, which do not overflow
    if len(raw) != size:
        raise ContentsMismatch(
            f"{sent.name} of {_by(shape)} {datatype} is {size} bytes, got {len(raw)}", field="raw_input_contents"
        )
    if datatype == "BOOL":
        return np.frombuffer(raw, np.uint8).astype(np.bool_).reshape(shape)
    return np.frombuffer(raw, wanted.dtype.newbyteorder("<")).reshape(shape)


def _read_typed(sent: Input, count: int, dtype: np.dtype[np.generic], datatype: str, field: str) -> Array:
    values = _typed_values(sent, count, datatype, field)
    wide = np.asarray(values, dtype if datatype in ("FP32", "FP64", "BOOL", "UINT64") else np.int64)
    read = wide.astype(dtype)
    if not np.array_equal(read, wide, equal_nan=dtype.kind == "f"):
        raise ContentsMismatch(f"{sent.name} holds values that are no {datatype}", field=f"{field}.contents")
    return read


def _typed_values(sent: Input, count: int, datatype: str, field: str) -> Sequence[Any]:
    """The typed contents of an input, of exactly the field that its datatype wants."""
    wanted = TYPED.get(datatype)
    filled = [each.name for each, _ in sent.contents.ListFields()]
    if wanted is None:
        raise ContentsMixed(f"{datatype} has no typed contents: send raw ones", field=f"{field}.contents")
    if filled not in ([], [wanted]):
        raise ContentsMixed(
            f"{sent.name} is {datatype}, which goes into {wanted}; got {', '.join(filled)}", field=f"{field}.contents"
        )
    values: Sequence[Any] = getattr(sent.contents, wanted)
    if len(values) != count:
        raise ContentsMismatch(
            f"{sent.name} of {_by(tuple(sent.shape))} has {count} elements, got {len(values)}",
            field=f"{field}.contents",
        )
    return values


def _read_encoded(sent: Input, raw: bytes | None, shape: tuple[int, ...], field: str) -> Sequence[bytes]:
    """The elements of a BYTES tensor, (N,) or (N, 1)."""
    if shape[1:] not in ((), (1,)):
        raise ShapeMismatch(f"encoded images are a BYTES tensor of N or Nx1, got {_by(shape)}", field=f"{field}.shape")
    if raw is None:
        return _typed_values(sent, shape[0], BYTES, field)
    encoded = list(islice(_split_bytes(raw, sent.name), shape[0] + 1))  # not millions of empty ones
    if len(encoded) != shape[0]:
        told = "more" if len(encoded) > shape[0] else len(encoded)
        raise ContentsMismatch(
            f"{sent.name} of {_by(shape)} has {shape[0]} elements, got {told}", field="raw_input_contents"
        )
    return encoded


def _announce_images(
    encoded: Sequence[bytes], arrays: Tensors, contract: PixelContract, limits: Limits, budget: DecodeBudget, field: str
) -> Sent:
    """The headers of images, and what decoding them costs: one at a time, and all their pixels together."""
    headers, largest = [], 0
    for number, image in enumerate(encoded):
        with at_field(f"{field}[{number}]"):
            headers.append(read_header(image, limits))
            cost_bytes = count_decode_bytes(headers[-1], contract)
            budget.check(cost_bytes)
            largest = max(largest, cost_bytes)
    return Sent(arrays, headers, contract, field, largest + (len(headers) - 1) * math.prod(contract.shape))


def _split_bytes(raw: bytes, name: str) -> Iterator[bytes]:
    """The elements of a raw BYTES tensor: each after its length, 4 bytes, little-endian."""
    start = 0
    while start < len(raw):
        if start + LENGTH.size > len(raw):
            raise ContentsMismatch(f"{name}: {len(raw) - start} bytes left over", field="raw_input_contents")
        (size,) = LENGTH.unpack_from(raw, start)
        start += LENGTH.size
        if start + size > len(raw):
            raise ContentsMismatch(
                f"{name}: an element claims {size} bytes, {len(raw) - start} are left", field="raw_input_contents"
            )
        yield raw[start : start + size]
        start += size


def _check_finite(inputs: Tensors) -> None:
    for name, array in inputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NotFinite(f"{name} holds NaN or infinity: --allow-nonfinite lets them through", field="inputs")


def write_outputs(
    reply: wire.ModelInferResponse, outputs: Tensors, classes: dict[str, int], labels: tuple[str, ...], raw: bool
) -> None:
    """Put outputs into a reply.

    Args:
        reply: to put them into.
        outputs: arrays by name, in the order wanted.
        classes: the outputs wanted as the best so many labels, and how many.
        labels: of the model.
        raw: as raw contents, else as typed ones.
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
    """The best values of each row as ``value:index:label``, highest first, ties by lowest index; bytes (N, count)."""
    best = np.argsort(-array.astype(np.float64), axis=1, kind="stable")[:, :count]
    named = len(labels) == array.shape[1]
    rows = [
        [f"{row[index]:f}:{index}{':' + labels[index] if named else ''}".encode() for index in chosen]
        for row, chosen in zip(array, best, strict=True)
    ]
    return np.array(rows, object)


def _by(shape: tuple[object, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
