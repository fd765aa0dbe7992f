"""Which inputs are large, and how much of the work of a certificate is done for them by samples.

Everything here follows from the inputs, never from the clock: two exports of one run have the same bytes.
"""

from __future__ import annotations

from evalmode.artifact.tensors import Array
from evalmode.limits import LARGEST_BATCH

LARGE_BYTES = 2**15  # of one input: an RGB image of more than about 104x104 pixels
SAMPLED_BYTES = 20_000_000  # of the inputs of a sample: 132 RGB images of 224x224
MIN_SAMPLED = 32  # inputs
# Kernels change where a batch fills a vector register, a tile or a block: at powers of two and beside them.
LARGE_BATCHES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64)


def is_large(inputs: Array) -> bool:
    """Whether inputs are large.

    Args:
        inputs: Of any dtype and shape, N along the first axis.
    """
    return bool(inputs[:1].nbytes > LARGE_BYTES)


def choose_sample(inputs: Array) -> slice:
    """Choose the inputs that expensive comparisons are done with: all, or an evenly spaced sample of large ones.

    Args:
        inputs: Of any dtype and shape, N along the first axis.

    Returns:
        The chosen positions along the first axis.
    """
    if not is_large(inputs):
        return slice(None)
    count = max(MIN_SAMPLED, SAMPLED_BYTES // inputs[:1].nbytes)
    return slice(None, None, -(-len(inputs) // count))


def list_batch_sizes(row_bytes: int) -> tuple[int, ...]:
    """List the batch sizes that batches are compared with single inputs for.

    Args:
        row_bytes: The size of one input.

    Returns:
        Every size from 1 to ``LARGEST_BATCH``, or fewer for large inputs.
    """
    return LARGE_BATCHES if row_bytes > LARGE_BYTES else tuple(range(1, LARGEST_BATCH + 1))
