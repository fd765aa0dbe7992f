"""One check each: every function raises what it found wrong, or returns in words what it found right.

Shapes: N images, K labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from serving.artifact import walk_nodes, walk_weights
from serving.certificate import Array, Certificate, Run, Tensors, largest_value
from serving.errors import (
    BatchMismatch,
    GoldenMismatch,
    NotRepeatable,
    OutputsMismatch,
    TrainMode,
    WeightsNotFinite,
)
from serving.proof.figures import binomial_tail

LARGEST_BATCH = 64
IMPLAUSIBLE = 1e-6  # below this chance, golden images do not belong to the accuracy stated
THREADS = (1, 2)
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")


def check_eval_mode(graph: onnx.ModelProto) -> str:
    """Nothing in the graph acts as in training.

    Raises:
        TrainMode: dropout that drops, a random operator, or batch norm that uses the statistics of its batch.
    """
    constants = dict(_named_constants(graph.graph))
    found = [described for node in walk_nodes(graph.graph) if (described := _describe_training(node, constants))]
    if found:
        raise TrainMode(
            f"not in eval mode: {'; '.join(sorted(set(found)))}. Call eval() on the whole network and export again"
        )
    norms = Counter(node.op_type for node in walk_nodes(graph.graph))["BatchNormalization"]
    return f"no dropout, nothing random; batch norm by moving statistics ({norms} layers left, the others folded)"


def _describe_training(node: onnx.NodeProto, constants: dict[str, Array]) -> str:
    """What a node does that only training may, in words; "" if nothing."""
    if node.op_type in RANDOM:
        return f"{node.op_type} draws at random ({node.output[0]})"
    if node.op_type == "BatchNormalization":
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if training or len([name for name in node.output if name]) > 1:
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


def check_outputs(run: Run, inputs: Tensors, labels: int) -> str:
    """Outputs are finite, a row for each input, and as wide as there are labels.

    Args:
        run: the network.
        inputs: to run it on.
        labels: how many; 0: it is no classifier.

    Raises:
        OutputsMismatch: they are not.
    """
    rows = len(next(iter(inputs.values())))
    for name, output in run(inputs).items():
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


def check_golden(certificate: Certificate, labels: tuple[str, ...], accuracy: float) -> str:
    """Golden images get about as many of their labels as the accuracy stated lets expect.

    Raises:
        GoldenMismatch: so few are right that they do not belong together.
    """
    named = [
        (told, target) for told, target in zip(certificate.told(labels), certificate.targets, strict=True) if target
    ]
    right = sum(told == target for told, target in named)
    if not named:
        return "drawn, without labels"
    if binomial_tail(right, len(named), accuracy) < IMPLAUSIBLE:
        raise GoldenMismatch(
            f"{right} of {len(named)} golden images get their label, at a stated accuracy of at least {accuracy:.2f}: "
            "labels, scale or channels are not those of training"
        )
    return f"{right} of {len(named)} golden images get their label"


def check_batches(runs: Sequence[Run], inputs: Tensors, tolerance: float, relative: bool) -> tuple[bool, float]:
    """Run inputs alone and at every position of batches of 1 to 64, with each run (threads).

    Args:
        runs: the network, on one thread and on two.
        inputs: to run it on.
        tolerance: the largest difference allowed.
        relative: differences are a share of the output's largest value.

    Returns:
        Whether all bits were equal, and the largest difference.

    Raises:
        BatchMismatch: an answer in a batch differs from that alone by more than the tolerance.
    """
    count = len(next(iter(inputs.values())))
    rows = [runs[0]({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(count)]
    alone = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    sizes = {name: largest_value(output) if relative else 1.0 for name, output in alone.items()}
    same, largest = True, 0.0
    for threads, run in zip(THREADS, runs, strict=False):
        for size in range(1, LARGEST_BATCH + 1):
            order = (np.arange(size) + size) % count  # another place for each input in each size
            for name, answer in run({name: array[order] for name, array in inputs.items()}).items():
                expected = alone[name][order]
                difference = float(np.abs(answer.astype(np.float64) - expected).max()) / sizes[name]
                same &= answer.tobytes() == expected.tobytes()
                largest = max(largest, difference)
                if not difference <= tolerance:
                    raise BatchMismatch(
                        f"in a batch of {size} on {threads} threads {name} differ from those alone by "
                        f"{difference:.1e} (limit {tolerance:.0e}): inputs of a batch influence each other"
                    )
    return same, largest
