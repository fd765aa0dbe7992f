"""Check that a network gives the same answers in any batch size as in the one that it was exported with."""

from __future__ import annotations

import numpy as np
import onnx

from evalmode.artifact.tensors import Array, Tensors, scale_tolerance
from evalmode.certification.one_by_one import run_each
from evalmode.certification.onnx_files import explained, first_line
from evalmode.errors import UsageError
from evalmode.runtime.session import open_cpu_session, silence_run

MAX_COMPARED = 64  # inputs
TOLERANCE = 1e-4  # for `scale_tolerance`: sums may be in another order
ADVICE = "export it with a batch of any size (torch: dynamic_shapes, Keras: a batch size of None)"
ONE_BY_ONE = "the network takes one input at a time: a batch is run one by one"


def allow_batches(
    original: onnx.ModelProto, freed: onnx.ModelProto, batch: int | None, inputs: Tensors, outputs: list[str]
) -> tuple[onnx.ModelProto, str]:
    """Choose a form of a network that accepts any batch size and gives the same answers.

    Args:
        original: The network.
        freed: Its copy that should accept any batch size.
        batch: The only batch size that the network accepts; None if it says that it accepts any.
        inputs: By name, any number along the first axis.
        outputs: The names of the outputs to compare.

    Returns:
        The copy; or if it fails and the network takes batches of 1, a network that runs it for one input after the
        other, and this in words.

    Raises:
        UsageError: Neither gives the same answers.
    """
    try:
        if batch or not _runs(freed, inputs, 2, outputs):
            check_freed(original, freed, batch or 1, inputs, outputs)
        return freed, ""
    except UsageError:
        if batch not in (1, None) or not _runs(original, inputs, 1, outputs):
            raise
    with explained("the network, run one by one"):
        each = run_each(original)
    check_freed(original, each, 1, inputs, outputs)
    return each, ONE_BY_ONE


def _runs(graph: onnx.ModelProto, inputs: Tensors, count: int, outputs: list[str]) -> bool:
    """Whether a network runs on so many inputs together."""
    rows = {name: np.resize(array, (count, *array.shape[1:])) for name, array in inputs.items()}
    try:
        open_cpu_session(graph.SerializeToString(), optimise=False).run(outputs, dict(rows), silence_run())
    except Exception:  # onnxruntime's own exceptions share no base class
        return False
    return True


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
        together = open_cpu_session(freed.SerializeToString(), optimise=False).run(outputs, dict(rows), silence_run())
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
