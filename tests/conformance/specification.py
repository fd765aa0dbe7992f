"""The datatypes of the protocol, copied from its specification, to check the table of evalmode independently.

https://github.com/kserve/open-inference-protocol, specification/protocol/inference_grpc.md: "Tensor Data Types", and
the comments of the message InferTensorContents.
"""

from __future__ import annotations

# Datatype -> numpy's name for one element of raw contents; BYTES elements have lengths of their own.
NUMPY = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}

# Datatype -> the field of typed contents; "" for FP16, which has none.
TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP16": "",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
