"""An int8 variant of an artifact, and whether it earns its place: faster here, and hardly less accurate."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from serving.certificate import INPUT, LOGITS
from serving.errors import NotWorthIt
from serving.model import Model
from serving.pixels import Pixels
from serving.proof.figures import Indices

LEAST_SPEEDUP = 1.3  # of one image alone
MOST_LOST = 0.003  # of accuracy, on all test images
CALIBRATION = 512  # training images that the ranges are measured on
BATCH = 64
ROUNDS = 200
QUANTIZED = ["Conv", "Gemm", "MatMul", "MaxPool"]  # what comes between stays float32


@dataclass(frozen=True)
class Gain:
    """What a variant gives and takes.

    Attributes:
        speedup: how many times faster one image alone is, by medians of interleaved runs.
        lost: accuracy lost on the test images; negative where it gained.
    """

    speedup: float
    lost: float


def quantize(graph: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
    """Weights and activations of convolutions and dense layers as 8 bits, statically, by quantise-dequantise pairs.

    Args:
        graph: float32.
        pixels: training images that show which values to expect, uint8 (N, H, W, C).
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        batches = iter([pixels[start : start + BATCH] for start in range(0, min(CALIBRATION, len(pixels)), BATCH)])

        def get_next(self) -> dict[str, Pixels] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            graph,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=True,  # 7 bits: without VNNI's instructions, 8 overflow in 16-bit sums
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


def measure_gain(old: Model, new: Model, pixels: Pixels, targets: Indices) -> Gain:
    """Compare a variant with the original on all test images, and time both in turns on one of them."""
    accuracies = [
        float(np.mean(np.concatenate([model.classify(batch)[1] for batch in _cut(pixels)]).argmax(1) == targets))
        for model in (old, new)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for model, taken in zip((old, new), times, strict=True):
            started = time.perf_counter()
            model.session.run([LOGITS], {INPUT: pixels[:1]})
            taken.append(time.perf_counter() - started)
    return Gain(statistics.median(times[0]) / statistics.median(times[1]), accuracies[0] - accuracies[1])


def check_gain(gain: Gain) -> str:
    """Whether a variant earns its place.

    Raises:
        NotWorthIt: too slow, or too much accuracy lost.
    """
    told = f"{gain.speedup:.2f} times as fast, {100 * gain.lost:.2f} points of accuracy lost"
    if not (gain.speedup >= LEAST_SPEEDUP and gain.lost <= MOST_LOST):
        raise NotWorthIt(
            f"{told}: not published, since at least {LEAST_SPEEDUP} times and at most {100 * MOST_LOST:.1f} points are "
            "wanted; on a processor with VNNI instructions it may be another"
        )
    return told


def _cut(pixels: Pixels) -> list[Pixels]:
    return [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
