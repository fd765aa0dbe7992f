"""Which output of another tool's network has the scores of the labels, and what its values are.

Shapes: N images, K labels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from evalmode.artifact.tensors import Floats, softmax
from evalmode.certification.inputs import FLOATS
from evalmode.certification.metrics import gives_probabilities
from evalmode.certification.onnx_files import describe
from evalmode.certification.wrap import Kind
from evalmode.errors import UsageError

TOLERANCE = 1e-3  # of probabilities, those of an output of float16 too
LINEAR = ("Gemm", "MatMul", "Add", "Conv")  # end in any number
SIGMOIDS = ("Sigmoid", "HardSigmoid")
PASSING = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Transpose")
Measure = Callable[[str], Floats]


def list_scores(graph: onnx.ModelProto, labels: int, name: str) -> list[str]:
    """List the outputs that have a value for each label, or of two labels one for the second.

    Args:
        graph: Another tool's network.
        labels: K.
        name: The name of the output if the user or a file states it, else "".

    Returns:
        The names of the outputs.

    Raises:
        UsageError: There is none, or none of this name.
    """
    outputs = {value.name: value for value in graph.graph.output}
    returns = "; ".join(map(describe, outputs.values())) or "nothing"
    if name:
        if name not in outputs:
            raise UsageError(f"the network has no output {name}, it returns {returns}")
        return [name]
    found = [one for one, value in outputs.items() if _has_width(value, labels)]
    if labels == 2 and not found:
        found = [one for one, value in outputs.items() if _has_width(value, 1)]
    if not found:
        raise UsageError(
            f"the network returns {returns}; none has a float value for each of {labels} labels: do the labels fit "
            "the network?"
        )
    return found


def _has_width(value: onnx.ValueInfoProto, width: int) -> bool:
    """Whether an output may be (N, width), or (N, width, 1, 1)."""
    kind = value.type.tensor_type
    sides = [dim.dim_value for dim in kind.shape.dim][1:]
    wide = [side for side in sides if side != 1] or sides[:1] or [1]
    return kind.elem_type in FLOATS and (wide in ([0], [width]) or not kind.HasField("shape"))


def choose_scores(graph: onnx.ModelProto, names: list[str], measure: Measure) -> tuple[str, str]:
    """Choose one of several outputs, if their values on images say the same, such as logits and their softmax.

    Args:
        graph: Another tool's network.
        names: Of outputs with a value for each label, at least one.
        measure: Runs the network on images and returns an output by its name, (N, K).

    Returns:
        The name of the output, one with logits if there is one; and how it was found, in words, or "".

    Raises:
        UsageError: The outputs say different things.
    """
    if len(names) == 1:
        return names[0], ""
    values = {name: measure(name) for name in names}
    shares = {name: one if gives_probabilities(one) else softmax(one) for name, one in values.items()}
    first = shares[names[0]]
    if any(one.shape != first.shape or np.abs(one - first).max() > TOLERANCE for one in shares.values()):
        returns = "; ".join(map(describe, graph.graph.output))
        raise UsageError(
            f"the network returns {returns}; {', '.join(names)} have a value for each of {first.shape[1]} labels, and "
            "say different things of the images: choose one with --output NAME"
        )
    chosen = next((name for name in names if not gives_probabilities(values[name])), names[0])
    others = ", ".join(name for name in names if name != chosen)
    return chosen, f"output {chosen} is used; {others} gives the same probabilities, measured on {len(first)} images"


def find_kind(graph: onnx.ModelProto, name: str, values: Floats, labels: int) -> tuple[Kind, str]:
    """Find out what the values of an output are.

    Args:
        graph: Another tool's network.
        name: The name of the output.
        values: Its values for images, (N, K), or (N, 1) for the second of two labels.
        labels: K.

    Returns:
        The kind of its values; and a sentence that says it.

    Raises:
        UsageError: The output has another number of values.
    """
    if values.shape[1:] != (labels,) and (labels, values.shape[1:]) != (2, (1,)):
        raise UsageError(
            f"the network returns {values.shape[1:]} values for an image, there are {labels} labels: do the labels fit "
            "the network?"
        )
    maker = _find_maker(graph.graph, name)
    within = bool((values >= 0).all() and (values <= 1).all())
    if values.shape[1] < labels:
        if within and maker not in LINEAR:
            return "second probability", f"output {name} is the probability of the second label"
        return "second logit", f"output {name} is the logit of the second label against the first"
    if gives_probabilities(values):
        return "probabilities", f"output {name} has probabilities"
    if within and maker in SIGMOIDS:
        return "shares", f"output {name} judges each label by itself (sigmoid): probabilities are shares of the sum"
    doubt = ", although all its values are from 0 to 1" if within and maker not in LINEAR else ""
    return "logits", f"output {name} has logits{doubt}"


def _find_maker(graph: onnx.GraphProto, name: str) -> str:
    """The operator that computes the values of an output."""
    makers = {output: node for node in graph.node for output in node.output}
    while name in makers and makers[name].op_type in PASSING:
        name = makers[name].input[0]
    return str(makers[name].op_type) if name in makers else ""
