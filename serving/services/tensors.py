"""Rules of the Open Inference Protocol for inputs and outputs: datatypes, contents and parameters.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_grpc.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evalmode.artifact.tensors import DTYPES
from evalmode.errors import NotServed, ParameterInvalid

BYTES = "BYTES"
DATATYPES = {np.dtype(name): name.upper().replace("FLOAT", "FP") for name in DTYPES}  # numpy's -> the protocol's
TYPED = {  # datatype -> the field of its typed contents, which FP16 lacks
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
LENGTH = struct.Struct("<I")  # precedes each element of raw BYTES contents


def check_parameters(sent: Mapping[str, Any], known: Sequence[str], owner: str = "") -> None:
    """Check that all parameters are supported: ignoring one would give an answer that the client did not ask for.

    Args:
        sent: The parameters of a request, an input or an output, by name.
        known: The names of the supported parameters.
        owner: The field that the parameters belong to, such as ``inputs[0].``; "" for the request.

    Raises:
        NotServed: A parameter asks for shared memory.
        ParameterInvalid: Another parameter is not supported.
    """
    if not sent:
        return
    unknown = sorted(set(sent) - set(known))
    if "shared_memory_region" in unknown:
        raise NotServed("shared memory is not supported: send the contents in the message", field=f"{owner}parameters")
    if unknown:
        raise ParameterInvalid(
            f"parameters {', '.join(unknown)} are not supported; supported: {', '.join(known) or 'none'}",
            field=f"{owner}parameters",
        )
