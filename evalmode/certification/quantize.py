"""Quantize an artifact to int8, and check on this machine that it is faster and hardly less accurate."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from evalmode.artifact.tensors import INPUT
from evalmode.certification.activation_map import remove_activation_map
from evalmode.certification.int8_weights import has_depthwise, round_weights
from evalmode.certification.large import is_large
from evalmode.certification.latency import measure_ratio
from evalmode.certification.metrics import Indices
from evalmode.errors import NotWorthIt
from evalmode.images.pixels import Pixels
from evalmode.runtime.model import Model

MIN_SPEEDUP = 1.3  # for a single image
MAX_ACCURACY_LOSS = 0.005  # on all test images, beyond what a few images may change by chance
MAX_DIFFERENCE = 0.08  # of logits, relative to their standard deviation; correct variants reach 0.01 to 0.05
CALIBRATION, LARGE_CALIBRATION = 512, 128  # training images at most, to measure the ranges of activations
BATCH, LARGE_BATCH = 64, 8
QUANTIZED = ["Conv", "Gemm", "MatMul", "MaxPool"]  # operators between them stay float32
# Clip (ReLU6) is part of the convolution before it: otherwise the values that it removes would widen the range. The
# sums of residual blocks, the last dense layer and the first convolution stay float32: they take hardly any time, and
# rounding them costs accuracy.
DEPTHWISE_QUANTIZED = ["Conv", "Clip"]


@dataclass(frozen=True)
class Gain:
    """The speedup of an int8 variant, and its loss of accuracy.

    Attributes:
        speedup: Latency of the original divided by that of the variant, for a single image.
        lost: Loss of accuracy on the test images, negative for a gain.
        difference: Root mean square difference of the logits, relative to their standard deviation between labels.
    """

    speedup: float
    lost: float
    difference: float


def quantize(graph: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
    """Quantize convolutions and dense layers to 8 bits, statically, as pairs of QuantizeLinear and DequantizeLinear.

    Args:
        graph: A float32 graph, which is not changed.
        pixels: Training images to measure the ranges of activations, uint8 (N, H, W, C).

    Returns:
        The quantized graph, without an activation map.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    count = LARGE_CALIBRATION if is_large(pixels) else CALIBRATION
    chosen = pixels[:: -(-len(pixels) // count)]  # spread over all of them, since they may be sorted by label
    graph = remove_activation_map(graph)
    depthwise, excluded = has_depthwise(graph), []
    scales: dict[str, npt.NDArray[np.float64]] = {}
    if depthwise:
        excluded = [node.name for node in graph.graph.node if node.op_type == "Conv"][:1]
        graph, scales = round_weights(graph, _cut(chosen), excluded)

    overrides = {
        name: [
            {
                "quant_type": QuantType.QInt8,
                "axis": 0,
                "scale": np.array(step, np.float32),
                "zero_point": np.array(0, np.int8),
            }
            for step in steps
        ]
        for name, steps in scales.items()
    }

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        batches = iter(_cut(chosen))

        def get_next(self) -> dict[str, Pixels] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, _silent():
        source, path = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(graph, source)  # a graph in memory would be changed
        quantize_static(
            source,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=DEPTHWISE_QUANTIZED if depthwise else QUANTIZED,
            nodes_to_exclude=excluded,
            per_channel=True,
            reduce_range=True,  # weights of 7 bits: on processors without VNNI, 8 bits overflow 16-bit sums
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"TensorQuantOverrides": overrides} if overrides else {},
        )
        return onnx.load(path)


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress the warnings of ONNX Runtime's quantizer, which do not apply here."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def measure_gain(old: Model, new: Model, splits: Sequence[tuple[Pixels, Indices]]) -> Gain:
    """Compare an int8 variant with the original.

    Args:
        old: The original.
        new: The variant.
        splits: Images that neither was trained on, uint8 (N, H, W, C), with the index of each image's label,
            int64 (N,). The first image is timed.

    Returns:
        The speedup, the loss of accuracy, and the difference of the logits.
    """
    batches = [batch for pixels, _ in splits for batch in _cut(pixels)]
    targets = np.concatenate([targets for _, targets in splits])
    classifiers = old.as_classifier(), new.as_classifier()
    logits = [np.concatenate([model.classify(batch)[1] for batch in batches]) for model in classifiers]
    rights = [int((rows.argmax(1) == targets).sum()) for rows in logits]
    spread = np.std(logits[0] - logits[0].mean(axis=1, keepdims=True))
    difference = float(np.sqrt(np.mean((logits[1] - logits[0]) ** 2)) / spread)
    first = batches[0][:1]
    return Gain(measure_ratio(old, first, new, first), (rights[0] - rights[1]) / len(targets), difference)


def check_gain(gain: Gain) -> str:
    """Check that an int8 variant is worth publishing.

    Args:
        gain: Its speedup, and its loss of accuracy.

    Returns:
        The gain as text.

    Raises:
        NotWorthIt: It is too slow, loses too much accuracy, or its logits differ too much.
    """
    described = (
        f"{gain.speedup:.2f} times as fast, {100 * gain.lost:.2f} points of accuracy lost, logits differ by "
        f"{100 * gain.difference:.1f}%"
    )
    accurate = gain.lost <= MAX_ACCURACY_LOSS and gain.difference <= MAX_DIFFERENCE
    if not (accurate and gain.speedup >= MIN_SPEEDUP):
        raise NotWorthIt(
            f"{described}: not published, since at least {MIN_SPEEDUP} times, at most {100 * MAX_ACCURACY_LOSS:.1f} "
            f"points and {100 * MAX_DIFFERENCE:.0f}% are required; a processor with VNNI instructions may be faster"
        )
    return described


def _cut(pixels: Pixels) -> list[Pixels]:
    size = LARGE_BATCH if is_large(pixels) else BATCH
    return [pixels[start : start + size] for start in range(0, len(pixels), size)]
