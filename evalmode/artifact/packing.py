"""Arrays as JSON values: base64 of their compressed little-endian bytes, with limits on what they may unpack to."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from evalmode.artifact.tensors import DTYPES, Array
from evalmode.limits import MIB

MAX_UNPACKED_BYTES = 128 * MIB  # all golden tensors of a certificate and the largest of its images together
MAX_DIMENSIONS = 32


def pack_array(array: Array) -> dict[str, Any]:
    """Pack an array into JSON values.

    Args:
        array: Of a dtype in ``DTYPES``.
    """
    little = array.astype(array.dtype.newbyteorder("<"))
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": encode_bytes(zlib.compress(little.tobytes(), 9)),
    }


def unpack_array(packed: Mapping[str, Any], rows: int) -> Array:
    """Unpack an array that ``pack_array`` packed. No more bytes are decompressed than its shape requires.

    Args:
        packed: The JSON values.
        rows: The expected length of the first axis.

    Raises:
        KeyError, TypeError, ValueError, zlib.error: The values are damaged, or ``measure_packed`` refuses them.
    """
    size, shape, dtype = measure_packed(packed, rows)
    raw = zlib.decompressobj().decompress(decode_bytes(packed["data"]), size + 1)
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)


def measure_packed(packed: Mapping[str, Any], rows: int) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Read the size of a packed array from its dtype and shape, without unpacking it.

    Args:
        packed: The JSON values.
        rows: The expected length of the first axis.

    Returns:
        Size in bytes, shape and dtype.

    Raises:
        ValueError: The array is empty, larger than ``MAX_UNPACKED_BYTES``, or has another number of rows.
    """
    dtype, size = np.dtype(DTYPES[DTYPES.index(packed["dtype"])]), 0
    shape = tuple(map(int, packed["shape"][: MAX_DIMENSIONS + 1]))
    if len(shape) <= MAX_DIMENSIONS and shape[:1] == (rows,) and all(0 < side <= MAX_UNPACKED_BYTES for side in shape):
        size = math.prod(shape) * dtype.itemsize
    if not 0 < size <= MAX_UNPACKED_BYTES:
        raise ValueError(
            f"an array of shape {str(shape)[:80]} {dtype} in a certificate of {rows} inputs: "
            f"that many rows, at most {MAX_DIMENSIONS} dimensions and {MAX_UNPACKED_BYTES} bytes are allowed"
        )
    return size, shape, dtype


def encode_bytes(content: bytes) -> str:
    """Encode bytes as base64 text."""
    return base64.b64encode(content).decode()


def decode_bytes(text: str) -> bytes:
    """Decode base64 text.

    Raises:
        ValueError: The text contains other characters, or its padding is wrong.
    """
    return base64.b64decode(text, validate=True)
