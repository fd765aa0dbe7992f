"""One check each: every function raises what it found wrong, or returns in words what it found right.

Shapes: N images, K labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from serving.artifact import INPUT, LOGITS, walk_nodes, walk_weights
from serving.certificate import Certificate, Floats
from serving.errors import (
    ArtifactInvalid,
    BatchMismatch,
    GoldenMismatch,
    NotRepeatable,
    OutputsMismatch,
    TrainMode,
    WeightsNotFinite,
)
from serving.limits import LARGEST_BATCH
from serving.model import open_cpu_session
from serving.pixels import Pixels
from serving.proof.figures import binomial_tail

IMPLAUSIBLE = 1e-6  # below this chance, golden images do not belong to the accuracy stated
THREADS = (1, 2)
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")

Array = npt.NDArray[Any]
Run = Callable[[Array], tuple[Array, ...]]


def check_eval_mode(graph: onnx.ModelProto) -> str:
    """Nothing in the graph acts as in training.

    Raises:
        TrainMode: dropout that drops, a random operator, or batch norm that uses the statistics of its batch.
    """
    constants, computed = dict(_named_constants(graph.graph)), _list_computed(graph.graph)
    nodes = walk_nodes(graph.graph)
    found = [described for node in nodes if (described := _describe_training(node, constants, computed))]
    if found:
        raise TrainMode(
            f"not in eval mode: {'; '.join(sorted(set(found)))}. Call eval() on the whole network and export again"
        )
    norms = Counter(node.op_type for node in walk_nodes(graph.graph))["BatchNormalization"]
    return f"no dropout, nothing random; {norms} batch norms, none by the statistics of its batch"


def _describe_training(node: onnx.NodeProto, constants: dict[str, Array], computed: set[str]) -> str:
    """What a node does that only training may, in words; "" if nothing."""
    if node.op_type in RANDOM:
        return f"{node.op_type} draws at random ({node.output[0]})"
    if node.op_type == "BatchNormalization":
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if training or len([name for name in node.output if name]) > 1 or computed & set(node.input[3:5]):
            return f"batch norm uses the statistics of its batch ({node.output[0]})"
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        mode = constants.get(node.input[2])
        if mode is None or mode.any():
            return f"dropout drops ({node.output[0]})"
    return ""


def _named_constants(graph: onnx.GraphProto) -> Iterator[tuple[str, Array]]:
    yield from ((weights.name, numpy_helper.to_array(weights)) for weights in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.output[0], numpy_helper.to_array(node.attribute[0].t)


def _list_computed(graph: onnx.GraphProto) -> set[str]:
    """The tensors that depend on the input."""
    computed = {value.name for value in graph.input} - {weights.name for weights in graph.initializer}
    for node in graph.node:  # in an order in which they can run
        if computed & set(node.input):
            computed |= set(node.output)
    return computed


def check_finite(graph: onnx.ModelProto) -> str:
    """Every weight and statistic is a number.

    Raises:
        WeightsNotFinite: NaN or infinity; a variance below 0.
    """
    count = 0
    variances = {node.input[4] for node in walk_nodes(graph.graph) if node.op_type == "BatchNormalization"}
    for weights in walk_weights(graph.graph):
        values = numpy_helper.to_array(weights)
        count += values.size
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise WeightsNotFinite(f"{weights.name}: {bad} of {values.size} values are NaN or infinite")
        if weights.name in variances and (values < 0).any():
            raise WeightsNotFinite(f"{weights.name}: a variance below 0 ({values.min():g})")
    return f"{count:,} values, all finite"


def open_runs(graph: bytes, name: str, outputs: Sequence[str] | None = None) -> list[Run]:
    """Ways to run a graph, one for each of ``THREADS``.

    Args:
        graph: the bytes of an ONNX file.
        name: of its input.
        outputs: the names of those wanted; None: all.

    Raises:
        ArtifactInvalid: onnxruntime cannot load it.
    """
    try:
        sessions = [open_cpu_session(graph, threads) for threads in THREADS]
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ArtifactInvalid(f"onnxruntime cannot load it: {error}") from error

    def run(session: Any, batch: Array) -> tuple[Array, ...]:
        return tuple(session.run(outputs, {name: batch}))

    return [partial(run, session) for session in sessions]


def run_all(graph: onnx.ModelProto, images: Pixels, optimise: bool = True) -> Floats:
    """Logits of all images, float32 (N, K), on one thread; ``optimise`` as False runs the graph as it stands.

    Raises:
        OutputsMismatch: onnxruntime cannot load it, or not run it in batches.
    """
    try:
        session = open_cpu_session(graph.SerializeToString(), optimise=optimise)
        starts = range(0, len(images), LARGEST_BATCH)
        batches = (images[start : start + LARGEST_BATCH] for start in starts)
        return np.concatenate([session.run([LOGITS], {INPUT: batch})[0] for batch in batches])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise OutputsMismatch(f"onnxruntime does not run it in batches of {LARGEST_BATCH}: {error}") from error


def check_outputs(run: Run, inputs: Array, labels: int) -> str:
    """Images run as a batch; outputs are finite and as wide as there are labels.

    Raises:
        OutputsMismatch: they are not.
    """
    try:
        outputs = run(inputs)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise OutputsMismatch(f"{len(inputs)} images do not run as one batch: {error}") from error
    for output in outputs:
        if output.shape != (len(inputs), labels):
            raise OutputsMismatch(f"{labels} labels but outputs of shape {output.shape} for {len(inputs)} images")
        if not np.isfinite(output).all():
            raise OutputsMismatch("outputs are NaN or infinite")
    return f"{labels} labels, as many outputs"


def check_repeats(run: Run, inputs: Array) -> str:
    """The same images give the same bits again.

    Raises:
        NotRepeatable: they do not.
    """
    first, second = run(inputs), run(inputs)
    for one, other in zip(first, second, strict=True):
        if one.tobytes() != other.tobytes():
            raise NotRepeatable(
                f"the same {len(inputs)} images give other answers the second time, by up to "
                f"{np.abs(one - other).max():.1e}: something random is left in the network"
            )
    return "two runs, equal bits"


def check_golden(certificate: Certificate, labels: tuple[str, ...], least_recalls: Sequence[float]) -> str:
    """Golden images get about as many of their labels as the accuracy stated lets expect.

    Args:
        certificate: with golden images of known labels, or of none.
        labels: in the order of the outputs.
        least_recalls: what share of each label's images is right at least.

    Raises:
        GoldenMismatch: so few are right that they do not belong together.
    """
    named = [pair for pair in zip(certificate.told(labels), certificate.targets, strict=True) if pair[1]]
    if not named:
        return "drawn, without labels"
    right = sum(told == target for told, target in named)
    share = sum(least_recalls[labels.index(target)] for _, target in named) / len(named)
    if binomial_tail(right, len(named), share) < IMPLAUSIBLE:
        raise GoldenMismatch(
            f"{right} of {len(named)} golden images get their label, of such images at least {share:.2f} are said to: "
            "labels, scale or channels are not those of training"
        )
    return f"{right} of {len(named)} golden images get their label"


def check_batches(runs: Sequence[Run], inputs: Array, tolerance: float) -> tuple[bool, float]:
    """Run images alone and at every position of batches of 1 to 64, with each run (threads).

    Returns:
        Whether all bits were equal, and the largest difference.

    Raises:
        BatchMismatch: an answer in a batch differs from that alone by more than the tolerance.
    """
    alone = [np.concatenate(rows) for rows in zip(*(runs[0](image[np.newaxis]) for image in inputs), strict=True)]
    same, largest = True, 0.0
    for threads, run in zip(THREADS, runs, strict=False):
        for size in range(1, LARGEST_BATCH + 1):
            order = (np.arange(size) + size) % len(inputs)  # another place for each image in each size
            for expected, answer in zip(alone, run(inputs[order]), strict=True):
                difference = float(np.abs(answer - expected[order]).max())
                same &= answer.tobytes() == expected[order].tobytes()
                largest = max(largest, difference)
                if not difference <= tolerance:
                    raise BatchMismatch(
                        f"in a batch of {size} on {threads} threads answers differ from those alone by "
                        f"{difference:.1e} (limit {tolerance:.0e}): images of a batch influence each other"
                    )
    return same, largest
