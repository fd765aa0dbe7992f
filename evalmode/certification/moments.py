"""Hold batch norm's statistics against what the layers see when the exported graph itself runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx

from evalmode.artifact.tensors import INPUT
from evalmode.certification.fold import Norm
from evalmode.errors import MomentsMismatch
from evalmode.images.pixels import Pixels
from evalmode.runtime.session import open_cpu_session

LIMIT = 3e-4  # of a mean in standard deviations, of a variance in itself; few small images and AVX-512 take up to 1e-4
LEAST_SCALE = 1e-6  # a folded channel scaled by less tells nothing of what it saw

Doubles = npt.NDArray[np.float64]


def check_moments(graph: onnx.ModelProto, norms: list[Norm], batches: Iterable[Pixels]) -> str:
    """Run the images the statistics were computed from, and compare.

    Raises:
        MomentsMismatch: a layer sees another mean or variance than it normalises by.
    """
    if not norms:
        return "no batch norm"
    worst = 0.0
    for norm, (mean, variance) in zip(norms, measure_moments(graph, norms, batches), strict=True):
        difference = max(*_differ(norm, mean, variance))
        if not difference <= LIMIT:
            raise MomentsMismatch(
                f"{norm.name} normalises by statistics that are not those of what it sees: off by {difference:.1e} "
                f"(limit {LIMIT:.0e}, of a standard deviation or a variance)"
            )
        worst = max(worst, difference)
    return f"{len(norms)} batch norms see what they normalise by, within {worst:.0e}"


def measure_moments(
    graph: onnx.ModelProto, norms: list[Norm], batches: Iterable[Pixels]
) -> Iterator[tuple[Doubles, Doubles]]:
    """Mean and variance of each channel of each layer's tensor, float64 (channels,)."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=norm.tensor) for norm in norms)
    session = open_cpu_session(exposed.SerializeToString())
    counts, sums, squares = [0] * len(norms), [0.0] * len(norms), [0.0] * len(norms)
    for batch in batches:
        for index, seen in enumerate(session.run(None, {INPUT: batch})):
            channels = np.moveaxis(seen, 1, 0).reshape(seen.shape[1], -1).astype(np.float64)
            counts[index] += channels.shape[1]
            sums[index] = sums[index] + channels.sum(1)
            squares[index] = squares[index] + (channels**2).sum(1)
    for count, total, square in zip(counts, sums, squares, strict=True):
        mean = np.asarray(total) / count
        yield mean, np.maximum(np.asarray(square) / count - mean**2, 0)


def _differ(norm: Norm, mean: Doubles, variance: Doubles) -> tuple[float, float]:
    """How far measured moments are from those a layer normalises by, at the worst channel."""
    own_mean, own_variance, scale, shift = (np.array(v) for v in (norm.mean, norm.variance, norm.scale, norm.shift))
    spread = own_variance + norm.epsilon
    if norm.folded:  # what it gives is scale * (seen - mean) / sqrt(spread) + shift
        told = np.abs(scale) > LEAST_SCALE
        factor = scale[told] / np.sqrt(spread[told])
        mean, variance = (mean[told] - shift[told]) / factor + own_mean[told], variance[told] / factor**2
        own_mean, own_variance, spread = own_mean[told], own_variance[told], spread[told]
    off_mean = np.abs(mean - own_mean) / np.sqrt(spread)
    off_variance = np.abs(variance - own_variance) / spread
    return float(off_mean.max(initial=0)), float(off_variance.max(initial=0))
