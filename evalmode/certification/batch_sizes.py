"""Check that a network gives the same answers in any batch size as in the one that it was exported with."""

from __future__ import annotations

import numpy as np
import onnx

from evalmode.artifact.tensors import Array, Tensors, scale_tolerance
from evalmode.certification.onnx_files import first_line
from evalmode.errors import UsageError
from evalmode.runtime.session import open_cpu_session

MAX_COMPARED = 64  # inputs
TOLERANCE = 1e-4  # for `scale_tolerance`: sums may be in another order
ADVICE = "export it with a batch of any size (torch: dynamic_shapes, Keras: a batch size of None)"


def check_freed(
    original: onnx.ModelProto, freed: onnx.ModelProto, batch: int, inputs: Tensors, outputs: list[str]
) -> None:
    """Compare a network that accepts one batch size with its copy that accepts any.

    Args:
        original: Accepts batches of ``batch`` only.
        freed: Accepts any batch size.
        batch: The batch size.
        inputs: By name, any number along the first axis; repeated or cut to whole batches.
        outputs: The names of the outputs to compare.

    Raises:
        UsageError: The copy does not run in other batch sizes, or gives other answers.
    """
    count = max(batch, min(MAX_COMPARED, len(next(iter(inputs.values())))) // batch * batch)
    rows = {name: np.resize(array, (count, *array.shape[1:])) for name, array in inputs.items()}
    try:
        together = open_cpu_session(freed.SerializeToString(), optimise=False).run(outputs, dict(rows))
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise UsageError(
            f"the network is fixed to batches of {batch}, and does not run in others: {ADVICE}: {first_line(error)}"
        ) from error
    session = open_cpu_session(original.SerializeToString(), optimise=False)
    parts = [
        session.run(outputs, {name: array[start : start + batch] for name, array in rows.items()})
        for start in range(0, count, batch)
    ]
    for expected, actual in zip(zip(*parts, strict=True), together, strict=True):
        if not _agree(np.concatenate([np.atleast_1d(one) for one in expected]), np.asarray(actual)):
            raise UsageError(f"the network is fixed to batches of {batch}, and gives other answers in others: {ADVICE}")


def _agree(one: Array, other: Array) -> bool:
    """Whether two outputs are equal, numbers up to rounding in float32."""
    if one.shape != other.shape or not np.issubdtype(one.dtype, np.number):
        return np.array_equal(one, other)
    difference = float(np.abs(one.astype(np.float64) - other).max())
    return difference <= scale_tolerance(TOLERANCE, one)
