"""Checks that run a network: its outputs, whether runs repeat, and whether inputs of a batch are independent.

Shapes: N inputs, K labels; images are H high, W wide and have C channels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx

from evalmode.artifact.certificate import LARGEST_TOLERANCE
from evalmode.artifact.tensors import INPUT, LOGITS, Floats, Run, Tensors, largest_value, scale_tolerance
from evalmode.certification.large import list_batch_sizes
from evalmode.errors import ArtifactInvalid, BatchMismatch, NotRepeatable, OutputsMismatch
from evalmode.images.pixels import Pixels
from evalmode.limits import LARGEST_BATCH
from evalmode.runtime.session import open_cpu_session

THREADS = (1, 2)


@dataclass(frozen=True, eq=False)
class Probe:
    """A network and inputs to run it on.

    Attributes:
        runs: The network with each number of ``THREADS``.
        inputs: Tensors by name, N inputs along the first axis of each.
        labels: K for an image classifier, whose outputs are (N, K); 0 for other networks, or if it is unknown.
        relative: Whether differences of an output are measured as a share of its largest value.
    """

    runs: Sequence[Run]
    inputs: Tensors
    labels: int
    relative: bool

    @property
    def count(self) -> int:
        """The number of inputs, N."""
        return len(next(iter(self.inputs.values())))

    @property
    def row_bytes(self) -> int:
        """The size of one input."""
        return sum(array[:1].nbytes for array in self.inputs.values())

    @cached_property
    def alone(self) -> Tensors:
        """The outputs by name, each input run alone, N along the first axis of each."""
        run = self.runs[0]
        rows = [run({name: array[row : row + 1] for name, array in self.inputs.items()}) for row in range(self.count)]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    @cached_property
    def batches(self) -> BatchDifference:
        """How batches differ from inputs run alone.

        Raises:
            BatchMismatch: By more than ``LARGEST_TOLERANCE``.
        """
        return compare_batches(self, LARGEST_TOLERANCE)


@dataclass(frozen=True)
class BatchDifference:
    """How the outputs of batches differ from those of inputs run alone.

    Attributes:
        same_bits: Whether all bits are equal.
        largest: The largest absolute difference, or share of the output's largest value, see ``Probe.relative``.
    """

    same_bits: bool
    largest: float


def open_runs(graph: bytes, optional: Collection[str] = ()) -> list[Run]:
    """Open a graph in an ONNX Runtime session for each number of ``THREADS``.

    Args:
        graph: The bytes of an ONNX file.
        optional: Names of outputs that are not requested.

    Returns:
        A function for each session, from tensors by name to tensors by name.

    Raises:
        ArtifactInvalid: ONNX Runtime cannot load it.
    """
    try:
        sessions = [open_cpu_session(graph, threads) for threads in THREADS]
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ArtifactInvalid(f"onnxruntime cannot load it: {error}") from error
    names = [output.name for output in sessions[0].get_outputs() if output.name not in optional]

    def run(session: Any, inputs: Tensors) -> Tensors:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return [partial(run, session) for session in sessions]


def run_all(graph: onnx.ModelProto, images: Pixels, optimise: bool = True) -> Floats:
    """Run an image classifier on images, in batches, on one thread.

    Args:
        graph: The graph of an artifact.
        images: uint8 (N, H, W, C).
        optimise: Whether ONNX Runtime may optimise the graph first.

    Returns:
        The logits, float32 (N, K).

    Raises:
        OutputsMismatch: ONNX Runtime cannot load the graph, or cannot run it in batches.
    """
    try:
        session = open_cpu_session(graph.SerializeToString(), optimise=optimise)
        starts = range(0, len(images), LARGEST_BATCH)
        batches = (images[start : start + LARGEST_BATCH] for start in starts)
        return np.concatenate([session.run([LOGITS], {INPUT: batch})[0] for batch in batches])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise OutputsMismatch(f"onnxruntime does not run it in batches of {LARGEST_BATCH}: {error}") from error


def check_outputs(probe: Probe) -> str:
    """Check that inputs run as a batch, and that the outputs are finite and have the expected shape.

    Args:
        probe: The network and its inputs.

    Returns:
        What was found, in words.

    Raises:
        OutputsMismatch: They do not run, or an output has another shape, or values that are NaN or infinite.
    """
    rows, labels = probe.count, probe.labels
    try:
        outputs = probe.runs[0](probe.inputs)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise OutputsMismatch(f"{rows} inputs do not run as one batch: {error}") from error
    for name, output in outputs.items():
        if labels and output.shape != (rows, labels):
            raise OutputsMismatch(f"{labels} labels but {name} of shape {output.shape} for {rows} inputs")
        if output.shape[:1] != (rows,):
            raise OutputsMismatch(f"{name} of shape {output.shape} for {rows} inputs: expected a row for each input")
        if not np.isfinite(output).all():
            raise OutputsMismatch(f"{name}: values are NaN or infinite")
    return f"{labels} labels, as many outputs" if labels else "a row for each input"


def check_repeats(probe: Probe) -> str:
    """Check that two runs on the same inputs give the same bits.

    Args:
        probe: The network and its inputs.

    Returns:
        What was found, in words.

    Raises:
        NotRepeatable: They do not.
    """
    first, second = (probe.runs[0](probe.inputs) for _ in range(2))
    for name, one in first.items():
        if one.tobytes() != second[name].tobytes():
            raise NotRepeatable(
                f"the same {len(one)} inputs give other {name} the second time, by up to "
                f"{np.abs(one - second[name]).max():.1e}: something random is left in the network"
            )
    return "two runs, equal bits"


def check_batches(probe: Probe) -> str:
    """Check that an input has the same outputs alone and in any batch.

    Args:
        probe: The network and its inputs.

    Returns:
        What was found, in words.

    Raises:
        BatchMismatch: An output in a batch differs by more than ``LARGEST_TOLERANCE``.
    """
    found = probe.batches
    outcome = "the same bits"
    if not found.same_bits:
        outcome = f"outputs differ by up to {found.largest:.1e}, so it runs one input at a time"
    sizes = list_batch_sizes(probe.row_bytes)
    some = "" if len(sizes) == LARGEST_BATCH else f"{len(sizes)} sizes from "
    return f"at every position of batches of {some}1 to {LARGEST_BATCH}, on 1 and 2 threads: {outcome}"


def compare_batches(probe: Probe, tolerance: float) -> BatchDifference:
    """Run inputs in batches of every size, or of some sizes if they are large, and compare with each run alone.

    See ``list_batch_sizes``.

    Args:
        probe: The network and its inputs.
        tolerance: The largest difference allowed; for logits see ``scale_tolerance``.

    Returns:
        The difference of all batches.

    Raises:
        BatchMismatch: An output in a batch differs by more than the tolerance.
    """
    alone = probe.alone
    sizes = {name: largest_value(output) if probe.relative else 1.0 for name, output in alone.items()}
    limits = {
        name: tolerance if probe.relative else scale_tolerance(tolerance, output) for name, output in alone.items()
    }
    same, largest = True, 0.0
    for threads, run in zip(THREADS, probe.runs, strict=False):
        for size in list_batch_sizes(probe.row_bytes):
            order = (np.arange(size) + size) % probe.count  # another position for each input in each size
            for name, answer in run({name: array[order] for name, array in probe.inputs.items()}).items():
                expected = alone[name][order]
                difference = float(np.abs(answer.astype(np.float64) - expected).max()) / sizes[name]
                same &= answer.tobytes() == expected.tobytes()
                largest = max(largest, difference)
                if not difference <= limits[name]:  # written so that NaN is a mismatch, too
                    raise BatchMismatch(
                        f"in a batch of {size} on {threads} threads {name} differ from those alone by "
                        f"{difference:.1e} (limit {limits[name]:.0e}): inputs of a batch influence each other"
                    )
    return BatchDifference(same, largest)
