"""The inputs of the Open Inference Protocol: checks them against the model, and converts them to arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from evalmode.artifact.tensors import INPUT, Array, Tensors
from evalmode.errors import (
    BatchTooLarge,
    ContentsMismatch,
    ContentsMixed,
    DatatypeMismatch,
    NotFinite,
    ShapeMismatch,
    TensorDuplicate,
    TensorMissing,
    TensorUnknown,
    at_field,
)
from evalmode.images.headers import Header, read_header
from evalmode.images.pixels import PixelContract
from evalmode.limits import Limits
from evalmode.runtime.model import Model
from evalmode.runtime.tensor import Tensor
from evalmode.wire import open_inference_pb2 as wire
from serving.engine.call import Call, check_alive
from serving.engine.decodes import Decodes
from serving.engine.decoding import count_decode_bytes, decode_requested
from serving.services.tensors import BYTES, DATATYPES, LENGTH, TYPED, check_parameters

MAX_ELEMENTS = 2**31  # exceeds the size of the largest message in bytes, and no such array is too large for numpy

INPUT_PARAMETERS = ("binary_data_size",)  # the size of the raw contents, which the KServe SDK sends by default

Input = wire.ModelInferRequest.InferInputTensor


@dataclass(frozen=True, eq=False)
class Sent:
    """The inputs of a request, with encoded images not decoded yet.

    Attributes:
        arrays: The numeric inputs by name, with the batch as the first axis.
        images: The headers of the encoded images, which were sent as BYTES.
        contract: The pixels that the images are decoded to; None if there are no images.
        field: The request field that holds the images.
        cost_bytes: The peak memory of decoding the images, in bytes; 0 if there are none.
    """

    arrays: Tensors
    images: Sequence[Header] = ()
    contract: PixelContract | None = None
    field: str = ""
    cost_bytes: int = 0

    def decode(self, call: Call) -> Tensors:
        """Decode the images.

        Args:
            call: The request's call. Decoding stops once it is cancelled or its deadline has passed.

        Returns:
            All inputs of the model by name, with the batch as the first axis.

        Raises:
            ImageError: An image is damaged.
            RequestCancelled: The call is cancelled.
            DeadlineExpired: The deadline has passed.
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
    request: wire.ModelInferRequest, model: Model, limits: Limits, allow_nonfinite: bool, decodes: Decodes
) -> Sent:
    """Check a request's inputs and convert the numeric ones to arrays.

    Args:
        request: The request, with raw or typed contents.
        model: The model that it names.
        limits: The limits on the batch and its images.
        allow_nonfinite: Whether floating-point inputs may contain NaN and infinity.
        decodes: The limit on the memory for decoding images.

    Raises:
        TensorError: An input does not match the model, or breaks the protocol's rules.
        BatchTooLarge: The batch exceeds ``max_batch``.
        ImageError: An image is not usable.
        NotServed: The request uses shared memory.
    """
    inputs, raw = list(request.inputs), list(request.raw_input_contents)
    _check_names(inputs, model)
    if raw and len(raw) != len(inputs):
        raise ContentsMismatch(
            f"{len(inputs)} inputs but {len(raw)} raw contents: send one for each input, in the same order",
            field="raw_input_contents",
        )
    read: dict[str, Array] = {}
    images = Sent(read)
    for place, sent in enumerate(inputs):
        field = f"inputs[{place}]"
        if raw and sent.HasField("contents"):
            raise ContentsMixed(
                f"{sent.name} has typed contents, but the request has raw contents too: use one form for all inputs",
                field=f"{field}.contents",
            )
        shape = _check_shape(sent, field)
        if shape[0] > limits.max_batch:
            raise BatchTooLarge(
                f"the batch size is {shape[0]}, the limit is {limits.max_batch}: send several requests",
                field=f"{field}.shape",
                size_inputs=shape[0],
                limit_inputs=limits.max_batch,
            )
        content = raw[place] if raw else None
        wanted = next(tensor for tensor in model.inputs if tensor.name == sent.name)
        if sent.datatype == BYTES and sent.name in model.manifest.image_inputs:
            encoded = _read_encoded(sent, content, shape, field)
            contract = model.manifest.image_inputs[sent.name]
            images = _read_headers(encoded, read, contract, limits, decodes, field)
        else:
            read[sent.name] = _read_numbers(sent, content, shape, wanted, field)
    batches = [len(array) for array in read.values()] + ([len(images.images)] if images.contract else [])
    if len(set(batches)) > 1:
        raise ShapeMismatch(f"the inputs have different batch sizes: {batches}", field="inputs")
    if not allow_nonfinite:
        _check_finite(read)
    return images


def _check_names(inputs: Sequence[Input], model: Model) -> None:
    wanted = [tensor.name for tensor in model.inputs]
    sent = [one.name for one in inputs]
    for place, name in enumerate(sent):
        if name not in wanted:
            raise TensorUnknown(
                f"the model has no input {name!r}; its inputs are {', '.join(wanted)}", field=f"inputs[{place}].name"
            )
        if name in sent[:place]:
            raise TensorDuplicate(f"input {name!r} is sent twice", field=f"inputs[{place}].name")
        check_parameters(inputs[place].parameters, INPUT_PARAMETERS, f"inputs[{place}].")
    missing = [name for name in wanted if name not in sent]
    if missing:
        raise TensorMissing(
            f"input {', '.join(missing)} is missing: the model needs {', '.join(wanted)}", field="inputs"
        )


def _check_shape(sent: Input, field: str) -> tuple[int, ...]:
    shape = tuple(sent.shape)
    if not shape or min(shape) < 0 or shape[0] == 0:
        raise ShapeMismatch(
            f"{sent.name} has the shape {_by(shape)}: the first axis must be the batch, at least 1",
            field=f"{field}.shape",
        )
    return shape


def _read_numbers(sent: Input, raw: bytes | None, shape: tuple[int, ...], wanted: Tensor, field: str) -> Array:
    datatype = DATATYPES[wanted.dtype]
    if sent.datatype != datatype:
        raise DatatypeMismatch(
            f"{sent.name} has {f'datatype {sent.datatype}' if sent.datatype else 'no datatype'}, "
            f"the model expects {datatype}",
            field=f"{field}.datatype",
        )
    if shape[1:] != wanted.shape and (
        len(shape) != 1 + len(wanted.shape)
        or any(side not in (-1, given) for side, given in zip(wanted.shape, shape[1:], strict=True))
    ):
        raise ShapeMismatch(
            f"{sent.name} has the shape {_by(shape)}, the model expects {_by(('N', *wanted.shape))}",
            field=f"{field}.shape",
        )
    count = math.prod(shape)
    if (count or math.prod(max(side, 1) for side in shape)) >= MAX_ELEMENTS:
        raise ShapeMismatch(
            f"{sent.name} has the shape {_by(shape)}, which has too many elements: the limit is {MAX_ELEMENTS - 1}",
            field=f"{field}.shape",
        )
    if raw is None:
        return _read_typed(sent, count, wanted.dtype, datatype, field).reshape(shape)
    size = count * wanted.dtype.itemsize  # Python's integers do not overflow
    if len(raw) != size:
        raise ContentsMismatch(
            f"{sent.name} with shape {_by(shape)} and datatype {datatype} needs {size} bytes, got {len(raw)}",
            field="raw_input_contents",
        )
    if datatype == "BOOL":
        return np.frombuffer(raw, np.uint8).astype(np.bool_).reshape(shape)
    return np.frombuffer(raw, wanted.dtype.newbyteorder("<")).reshape(shape)


def _read_typed(sent: Input, count: int, dtype: np.dtype[np.generic], datatype: str, field: str) -> Array:
    values = _typed_values(sent, count, datatype, field)
    wide = np.asarray(values, dtype if datatype in ("FP32", "FP64", "BOOL", "UINT64") else np.int64)
    read = wide.astype(dtype)
    if not np.array_equal(read, wide, equal_nan=dtype.kind == "f"):
        raise ContentsMismatch(
            f"{sent.name} contains values outside the range of {datatype}", field=f"{field}.contents"
        )
    return read


def _typed_values(sent: Input, count: int, datatype: str, field: str) -> Sequence[Any]:
    """The typed contents of an input, from the one field for its datatype."""
    wanted = TYPED.get(datatype)
    filled = [each.name for each, _ in sent.contents.ListFields()]
    if wanted is None:
        raise ContentsMixed(f"{datatype} has no typed contents: send raw contents", field=f"{field}.contents")
    if filled not in ([], [wanted]):
        raise ContentsMixed(
            f"{sent.name} has datatype {datatype}, whose values belong in {wanted}; got {', '.join(filled)}",
            field=f"{field}.contents",
        )
    values: Sequence[Any] = getattr(sent.contents, wanted)
    if len(values) != count:
        raise ContentsMismatch(
            f"{sent.name} with shape {_by(tuple(sent.shape))} needs {count} elements, got {len(values)}",
            field=f"{field}.contents",
        )
    return values


def _read_encoded(sent: Input, raw: bytes | None, shape: tuple[int, ...], field: str) -> Sequence[bytes]:
    """The elements of a BYTES tensor, (N,) or (N, 1)."""
    if shape[1:] not in ((), (1,)):
        raise ShapeMismatch(
            f"encoded images must be a BYTES tensor of shape N or Nx1, got {_by(shape)}", field=f"{field}.shape"
        )
    if raw is None:
        return _typed_values(sent, shape[0], BYTES, field)
    encoded = list(islice(_split_bytes(raw, sent.name), shape[0] + 1))  # the contents may hold millions of empty ones
    if len(encoded) != shape[0]:
        count = "more" if len(encoded) > shape[0] else len(encoded)
        raise ContentsMismatch(
            f"{sent.name} with shape {_by(shape)} needs {shape[0]} elements, got {count}", field="raw_input_contents"
        )
    return encoded


def _read_headers(
    encoded: Sequence[bytes], arrays: Tensors, contract: PixelContract, limits: Limits, decodes: Decodes, field: str
) -> Sent:
    """Read the headers of encoded images. The images are decoded one at a time, and all their pixels are kept."""
    headers, largest = [], 0
    for number, image in enumerate(encoded):
        with at_field(f"{field}[{number}]"):
            headers.append(read_header(image, limits))
            cost_bytes = count_decode_bytes(headers[-1], contract)
            decodes.check(cost_bytes)
            largest = max(largest, cost_bytes)
    return Sent(arrays, headers, contract, field, largest + (len(headers) - 1) * math.prod(contract.shape))


def _split_bytes(raw: bytes, name: str) -> Iterator[bytes]:
    """Split a raw BYTES tensor into its elements. A length of 4 bytes, little-endian, precedes each element."""
    start = 0
    while start < len(raw):
        if start + LENGTH.size > len(raw):
            raise ContentsMismatch(
                f"{name}: {len(raw) - start} bytes follow the last element", field="raw_input_contents"
            )
        (size,) = LENGTH.unpack_from(raw, start)
        start += LENGTH.size
        if start + size > len(raw):
            raise ContentsMismatch(
                f"{name}: an element has a length of {size} bytes, but {len(raw) - start} remain",
                field="raw_input_contents",
            )
        yield raw[start : start + size]
        start += size


def _check_finite(inputs: Tensors) -> None:
    for name, array in inputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NotFinite(
                f"{name} contains NaN or infinity: the server accepts them with --allow-nonfinite", field="inputs"
            )


def _by(shape: tuple[object, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
