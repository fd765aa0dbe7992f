"""One check each: every function raises what it found wrong, or returns in words what it found right.

Shapes: N images, K labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from evalmode.artifact.certificate import ClassifierCertificate
from evalmode.artifact.sealing import walk
from evalmode.artifact.tensors import INPUT, LOGITS, Array, Floats, Run, Tensors, largest_value, scale_tolerance
from evalmode.certification.figures import binomial_tail
from evalmode.errors import (
    ArtifactInvalid,
    BatchMismatch,
    GoldenMismatch,
    NotRepeatable,
    OutputsMismatch,
    TrainMode,
    WeightsNotFinite,
)
from evalmode.images.pixels import Pixels
from evalmode.limits import LARGEST_BATCH
from evalmode.runtime.session import open_cpu_session

IMPLAUSIBLE = 1e-6  # below this chance, golden images do not belong to the accuracy stated
THREADS = (1, 2)
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")


def check_eval_mode(graph: onnx.ModelProto) -> str:
    """Nothing in the graph acts as in training.

    Raises:
        TrainMode: dropout that drops, a random operator, or batch norm that uses the statistics of its batch.
    """
    constants, computed = dict(_named_constants(graph.graph)), _list_computed(graph.graph)
    nodes = walk(graph.graph, onnx.NodeProto)
    found = [described for node in nodes if (described := _describe_training(node, constants, computed))]
    if found:
        raise TrainMode(
            f"not in eval mode: {'; '.join(sorted(set(found)))}. Call eval() on the whole network and export again"
        )
    norms = Counter(node.op_type for node in walk(graph.graph, onnx.NodeProto))["BatchNormalization"]
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
    variances = {node.input[4] for node in walk(graph.graph, onnx.NodeProto) if node.op_type == "BatchNormalization"}
    for weights in walk(graph.graph, onnx.TensorProto):
        values = numpy_helper.to_array(weights)
        count += values.size
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise WeightsNotFinite(f"{weights.name}: {bad} of {values.size} values are NaN or infinite")
        if weights.name in variances and (values < 0).any():
            raise WeightsNotFinite(f"{weights.name}: a variance below 0 ({values.min():g})")
    return f"{count:,} values, all finite"


def open_runs(graph: bytes) -> list[Run]:
    """Ways to run a graph, one for each of ``THREADS``.

    Args:
        graph: the bytes of an ONNX file.

    Raises:
        ArtifactInvalid: onnxruntime cannot load it.
    """
    try:
        sessions = [open_cpu_session(graph, threads) for threads in THREADS]
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ArtifactInvalid(f"onnxruntime cannot load it: {error}") from error
    names = [output.name for output in sessions[0].get_outputs()]

    def run(session: Any, inputs: Tensors) -> Tensors:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

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


def check_outputs(run: Run, inputs: Tensors, labels: int) -> str:
    """Inputs run as a batch; outputs are finite, a row for each input, and as wide as there are labels.

    Args:
        run: the network.
        inputs: to run it on.
        labels: how many; 0: it is no classifier.

    Raises:
        OutputsMismatch: they are not.
    """
    rows = len(next(iter(inputs.values())))
    try:
        outputs = run(inputs)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise OutputsMismatch(f"{rows} inputs do not run as one batch: {error}") from error
    for name, output in outputs.items():
        if len(output) != rows or (labels and output.shape != (rows, labels)):
            raise OutputsMismatch(f"{labels} labels but {name} of shape {output.shape} for {rows} inputs")
        if not np.isfinite(output).all():
            raise OutputsMismatch(f"{name}: values are NaN or infinite")
    return f"{labels} labels, as many outputs" if labels else "a row for each input"


def check_repeats(run: Run, inputs: Tensors) -> str:
    """The same inputs give the same bits again.

    Raises:
        NotRepeatable: they do not.
    """
    first, second = run(inputs), run(inputs)
    for name, one in first.items():
        if one.tobytes() != second[name].tobytes():
            raise NotRepeatable(
                f"the same {len(one)} inputs give other {name} the second time, by up to "
                f"{np.abs(one - second[name]).max():.1e}: something random is left in the network"
            )
    return "two runs, equal bits"


def check_golden(certificate: ClassifierCertificate, labels: tuple[str, ...], least_recalls: Sequence[float]) -> str:
    """Golden images get about as many of their labels as the accuracy stated lets expect.

    Args:
        certificate: with golden images of known labels, or of none.
        labels: in the order of the outputs.
        least_recalls: what share of each label's images is right at least.

    Raises:
        GoldenMismatch: so few are right that they do not belong together.
    """
    named = [pair for pair in zip(certificate.predict_labels(labels), certificate.targets, strict=True) if pair[1]]
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


def check_batches(runs: Sequence[Run], inputs: Tensors, tolerance: float, relative: bool) -> tuple[bool, float]:
    """Run inputs alone and at every position of batches of 1 to 64, with each run (threads).

    Args:
        runs: the network, on one thread and on two.
        inputs: to run it on.
        tolerance: the largest difference allowed: of logits as `scale_tolerance` takes it.
        relative: differences are a share of the output's largest value, whatever that is.

    Returns:
        Whether all bits were equal, and the largest difference.

    Raises:
        BatchMismatch: an answer in a batch differs from that alone by more than the tolerance.
    """
    count = len(next(iter(inputs.values())))
    rows = [runs[0]({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(count)]
    alone = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    sizes = {name: largest_value(output) if relative else 1.0 for name, output in alone.items()}
    limits = {name: tolerance if relative else scale_tolerance(tolerance, output) for name, output in alone.items()}
    same, largest = True, 0.0
    for threads, run in zip(THREADS, runs, strict=False):
        for size in range(1, LARGEST_BATCH + 1):
            order = (np.arange(size) + size) % count  # another place for each input in each size
            for name, answer in run({name: array[order] for name, array in inputs.items()}).items():
                expected = alone[name][order]
                difference = float(np.abs(answer.astype(np.float64) - expected).max()) / sizes[name]
                same &= answer.tobytes() == expected.tobytes()
                largest = max(largest, difference)
                if not difference <= limits[name]:
                    raise BatchMismatch(
                        f"in a batch of {size} on {threads} threads {name} differ from those alone by "
                        f"{difference:.1e} (limit {limits[name]:.0e}): inputs of a batch influence each other"
                    )
    return same, largest
