"""Wrap another tool's network without changing its answers, for any batch size.

Shapes: N images, H height, W width, C channels, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import onnx

from evalmode.artifact.tensors import INPUT, LOGITS, Floats
from evalmode.certification.batch_sizes import allow_batches
from evalmode.certification.certify import strip
from evalmode.certification.inputs import ImageInput
from evalmode.certification.one_by_one import run_each
from evalmode.certification.onnx_files import find_batch, free_batch
from evalmode.certification.runs import run_all
from evalmode.certification.scores import choose_scores, find_kind, list_scores
from evalmode.certification.wrap import Kind, Scores, Transform, wrap
from evalmode.images.pixels import Pixels


@dataclass(frozen=True, eq=False)
class Taken:
    """Another tool's network, and what it takes.

    Attributes:
        graph: The network.
        image: Its input.
        transform: What is done to pixels.
    """

    graph: onnx.ModelProto
    image: ImageInput
    transform: Transform


@dataclass(frozen=True)
class Wrapped:
    """The graph of an artifact around another tool's network.

    Attributes:
        graph: The graph.
        kind: What the values of the network's output are.
        notes: A sentence for everything about it that the network's files do not state.
    """

    graph: onnx.ModelProto
    kind: Kind
    notes: tuple[str, ...]


def wrap_exactly(taken: Taken, labels: int, output: str, pixels: Pixels) -> Wrapped:
    """Wrap a network for any batch size, and check on images that its answers stay the same.

    Args:
        taken: The network.
        labels: K.
        output: The name of the output with the scores; "" to find it.
        pixels: Of images, uint8 (N, H, W, C).

    Returns:
        The graph of an artifact, and what was found out about the network.

    Raises:
        UsageError: The scores cannot be found, or the network cannot run in batches.
    """
    names = list_scores(taken.graph, labels, output)
    note = _check_batches(taken, Scores(names[0], 0), pixels)

    @cache
    def measure(name: str) -> Floats:
        return run_all(_wrap_for_batches(taken, Scores(name, 0), bool(note)), pixels)

    name, chosen = choose_scores(taken.graph, names, measure)
    kind, found = find_kind(taken.graph, name, measure(name), labels)
    graph = _wrap_for_batches(taken, Scores(name, labels, kind), bool(note))
    return Wrapped(graph, kind, tuple(one for one in (chosen, found, note) if one))


def _check_batches(taken: Taken, scores: Scores, pixels: Pixels) -> str:
    """Check that a network answers the same in any batch size; "", or that it has to run one by one, in words."""
    original = wrap(taken.graph, taken.image, taken.transform, scores)
    freed = _wrap_for_batches(taken, scores, one_by_one=False)
    return allow_batches(original, freed, find_batch(taken.graph), {INPUT: pixels}, [LOGITS])[1]


def _wrap_for_batches(taken: Taken, scores: Scores, one_by_one: bool) -> onnx.ModelProto:
    if one_by_one:
        return strip(run_each(wrap(taken.graph, taken.image, taken.transform, scores)))
    return strip(wrap(free_batch(taken.graph), taken.image, taken.transform, scores))
