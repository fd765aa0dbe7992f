"""Compare the statistics of batch norm layers with the inputs that they get when the exported graph runs."""

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

LIMIT = 3e-4  # mean in standard deviations, variance relative to itself; few small images with AVX-512 reach 1e-4
MIN_SCALE = 1e-6  # the input of a folded channel cannot be recovered where the scale is smaller

Doubles = npt.NDArray[np.float64]


def check_moments(graph: onnx.ModelProto, norms: list[Norm], batches: Iterable[Pixels]) -> str:
    """Run the images that the statistics were computed on, and compare.

    Args:
        graph: The exported graph.
        norms: Its batch norm layers.
        batches: The images, uint8 (N, H, W, C) each.

    Returns:
        What was found, in words.

    Raises:
        MomentsMismatch: The mean or variance of a layer's input is not the one that it normalises by.
    """
    if not norms:
        return "no batch norm"
    worst = 0.0
    for norm, (mean, variance) in zip(norms, measure_moments(graph, norms, batches), strict=True):
        difference = max(*_differ(norm, mean, variance))
        if not difference <= LIMIT:
            raise MomentsMismatch(
                f"{norm.name} normalises by statistics that are not those of its input: off by {difference:.1e} "
                f"(limit {LIMIT:.0e}, of a standard deviation or a variance)"
            )
        worst = max(worst, difference)
    return f"{len(norms)} batch norms normalise by the statistics of their inputs, within {worst:.0e}"


def measure_moments(
    graph: onnx.ModelProto, norms: list[Norm], batches: Iterable[Pixels]
) -> Iterator[tuple[Doubles, Doubles]]:
    """Measure the mean and variance of each channel of each layer's tensor.

    Args:
        graph: The exported graph.
        norms: Its batch norm layers.
        batches: Images, uint8 (N, H, W, C) each.

    Yields:
        For each layer the means and the variances, float64 (channels,).
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=norm.tensor) for norm in norms)
    session = open_cpu_session(exposed.SerializeToString(), threads=0)  # the moments are not stored
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
    """The largest differences, over all channels, of measured mean and variance from those a layer normalises by."""
    own_mean, own_variance, scale, shift = (np.array(v) for v in (norm.mean, norm.variance, norm.scale, norm.shift))
    spread = own_variance + norm.epsilon
    if norm.folded:  # the tensor is its output, scale * (input - mean) / sqrt(spread) + shift
        known = np.abs(scale) > MIN_SCALE
        factor = scale[known] / np.sqrt(spread[known])
        mean, variance = (mean[known] - shift[known]) / factor + own_mean[known], variance[known] / factor**2
        own_mean, own_variance, spread = own_mean[known], own_variance[known], spread[known]
    off_mean = np.abs(mean - own_mean) / np.sqrt(spread)
    off_variance = np.abs(variance - own_variance) / spread
    return float(off_mean.max(initial=0)), float(off_variance.max(initial=0))
