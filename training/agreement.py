"""Compare the logits of torch, of ONNX Runtime and of a folded graph on the same test images."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from evalmode.artifact.tensors import INPUT, Floats, largest_value, scale_tolerance
from evalmode.certification.large import is_large
from evalmode.images.pixels import Pixels
from evalmode.runtime.session import open_cpu_session
from training.datasets import Split
from training.errors import FoldMismatch, NetworksDisagree
from training.evaluation import predict_logits, split_evaluation
from training.hooks import watch_outputs
from training.networks import scale_pixels

LOGIT_TOLERANCE, MAX_LOGIT_TOLERANCE = 1e-4, 1e-2  # for logits of the order of 1 to 10: see `scale_tolerance`
ROUNDING = 8.0  # times the rounding of torch itself, which is measured on a part of the test images
DOUBLE_LARGE = 16  # large images, see `is_large`
DOUBLE_IMAGES, DOUBLE_PIXELS = 1_024, 2**21  # limits of what is run in float64, which takes several times as long


@dataclass(frozen=True)
class Agreement:
    """How well ONNX Runtime agrees with torch on test images.

    Attributes:
        images: Number of images compared: the whole test set, or an evenly spaced sample if the images are large.
        max_logit_difference: Largest absolute difference of a logit.
        tolerance: Largest difference that is allowed.
        near_ties: Number of images whose best two logits in torch are closer than the tolerance.
        changed: Number of images with another best label in ONNX Runtime than in torch; all of them are near ties.
    """

    images: int
    max_logit_difference: float
    tolerance: float
    near_ties: int
    changed: int


@dataclass(frozen=True, eq=False)
class Expected:
    """The logits of torch, and how far another correct float32 computation may differ from them.

    Attributes:
        logits: float32 (N, K).
        tolerance: Largest difference of a logit.
    """

    logits: Floats
    tolerance: float


def expect_answers(network: nn.Module, split: Split) -> Expected:
    """Compute the logits of torch for a split, and a tolerance for other computations.

    The tolerance follows the condition of the network, which is the distance between its logits in float32 and in
    float64. Black and white images or many layers cost more digits than noise does. Correct computations differ by a
    few times this distance, faulty ones by more.

    Args:
        network: The network, in eval mode on the CPU.
        split: The images.

    Returns:
        Logits in float32 of all images, and the tolerance.
    """
    logits = predict_logits(network, split).numpy()
    low, high = (scale_tolerance(bound, logits) for bound in (LOGIT_TOLERANCE, MAX_LOGIT_TOLERANCE))
    return Expected(logits, min(max(low, ROUNDING * _measure_rounding(network, split, logits)), high))


@torch.no_grad()
def _measure_rounding(network: nn.Module, split: Split, logits: Floats) -> float:
    """Measure the largest difference between logits in float32 and float64 on some images; 0 if float64 fails."""
    most = DOUBLE_LARGE if is_large(split.images) else DOUBLE_IMAGES
    count = max(1, min(most, DOUBLE_PIXELS // split.images[0, ..., 0].size))
    step = -(-len(split) // count)
    try:
        double = copy.deepcopy(network).double()
        batches = split_evaluation(split.images[::step])
        exact = torch.cat([double(scale_pixels(torch.from_numpy(batch)).double()) for batch in batches]).numpy()
    except MemoryError:
        raise
    except Exception:  # it cannot be copied, or its code requires float32 and may raise anything
        return 0.0
    return float(np.abs(logits[::step] - exact).max())


def check_fold(folded: Floats, unfolded: Floats, tolerance: float) -> float:
    """Check that folding batch norm into convolutions changes no logit by more than rounding.

    Args:
        folded: Logits of the folded graph, float32 (N, K).
        unfolded: Logits of the graph before folding, float32 (N, K).
        tolerance: Largest difference that counts as rounding.

    Returns:
        The largest difference.

    Raises:
        FoldMismatch: A logit differs by more, or is NaN.
    """
    difference = float(np.abs(folded - unfolded).max())
    if not difference <= tolerance:  # written so that NaN is refused, too
        raise FoldMismatch(
            f"batch norm folded into convolutions gives other logits: by {difference:.2e} "
            f"(limit {tolerance:.2g}); nothing was published"
        )
    return difference


def measure_agreement(
    network: nn.Module,
    test: Split,
    expected: Expected,
    actual: Floats,
    outputs: dict[str, str],
    graph: onnx.ModelProto,
) -> Agreement:
    """Compare the logits of ONNX Runtime with those of torch.

    Args:
        network: The network; run again to find the layer that differs.
        test: The test images.
        expected: Logits of torch, and the tolerance.
        actual: Logits of ONNX Runtime, float32 (N, K).
        outputs: Name of the output tensor in the graph, for each layer of the network.
        graph: The graph that ONNX Runtime ran.

    Returns:
        The differences, all within the tolerance.

    Raises:
        NetworksDisagree: A logit differs by more than the tolerance, or a label changes that is no near tie.
    """
    difference, tolerance = float(np.abs(expected.logits - actual).max()), expected.tolerance
    best_two = np.sort(expected.logits, axis=1)[:, -2:]
    near_tie = best_two[:, 1] - best_two[:, 0] < tolerance
    changed = expected.logits.argmax(1) != actual.argmax(1)
    wrong = int((changed & ~near_tie).sum())
    if not difference <= tolerance or wrong:
        share = tolerance / largest_value(expected.logits)
        raise NetworksDisagree(
            f"onnxruntime disagrees with torch on the test images: logits differ by {difference:.2e} "
            f"(limit {tolerance:.2g}), {wrong} of {len(test)} labels change; "
            f"{_find_divergence(network, test.images[:8], outputs, graph, share)}; nothing was published"
        )
    return Agreement(len(test), difference, tolerance, int(near_tie.sum()), int(changed.sum()))


@torch.no_grad()
def _find_divergence(
    network: nn.Module, images: Pixels, outputs: dict[str, str], graph: onnx.ModelProto, share: float
) -> str:
    """Describe the first layer whose output differs between ONNX Runtime and torch.

    Args:
        network: The network, in eval mode.
        images: Images to run, uint8 (N, H, W, C).
        outputs: Name of the output tensor in the graph, for each layer.
        graph: The graph to run.
        share: Largest difference that counts as rounding, relative to the largest value of the layer.

    Returns:
        A clause for the error message.
    """
    computed: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def keep(name: str, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        calls.update([name])
        if isinstance(output, Tensor):
            computed[name] = output.clone()  # the next layer may change it in place

    with watch_outputs(dict(network.named_modules()), keep):
        network(scale_pixels(torch.from_numpy(images)))
    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph)
    tensors = {tensor for node in graph.graph.node for tensor in node.output}
    # In the order in which they finished. A layer that is called twice has two outputs, of which the graph names one.
    layers = [name for name in computed if calls[name] == 1 and outputs.get(name) in tensors]
    if not layers:
        return "no layer of the network is recognisable in the graph"
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=outputs[name]) for name in layers)
    actual = open_cpu_session(exposed.SerializeToString()).run(None, {INPUT: images})
    for name, other in zip(layers, actual, strict=True):
        own = computed[name].numpy()
        if own.shape != other.shape:
            continue  # a layer that returns something else than its last operation computes
        difference = float(np.abs(own - other).max())
        if not difference <= share * largest_value(own):
            return f"the first layer that diverges is {name}, by {difference:.2e}"
    return "no layer diverges, so the difference arises after the last one"
