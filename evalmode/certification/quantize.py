"""An int8 variant of an artifact, and whether it earns its place: faster here, and hardly less accurate."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from evalmode.artifact.tensors import INPUT
from evalmode.certification.figures import Indices
from evalmode.certification.latency import measure_ratio
from evalmode.errors import NotWorthIt
from evalmode.images.pixels import Pixels
from evalmode.runtime.model import Model

LEAST_SPEEDUP = 1.3  # of one image alone
MOST_LOST = 0.003  # of accuracy, on all test images
MOST_DIFFERENCE = 0.08  # of logits, relative to their own spread: honest variants move them by 1 to 5%
CALIBRATION = 512  # training images, at most, that the ranges are measured on
BATCH = 64
QUANTIZED = ["Conv", "Gemm", "MatMul", "MaxPool"]  # what comes between stays float32


@dataclass(frozen=True)
class Gain:
    """What a variant gives and takes.

    Attributes:
        speedup: how many times faster one image alone is, by medians of interleaved runs.
        lost: accuracy lost on the test images; negative where it gained.
        difference: of the logits, root mean square, relative to their spread between labels.
    """

    speedup: float
    lost: float
    difference: float


def quantize(graph: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
    """Weights and activations of convolutions and dense layers as 8 bits, statically, by quantise-dequantise pairs.

    Args:
        graph: float32.
        pixels: training images that show which values to expect, uint8 (N, H, W, C).
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    chosen = pixels[:: -(-len(pixels) // CALIBRATION)]  # of all labels, however they are sorted

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
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=True,  # 7 bits: without VNNI's instructions, 8 overflow in 16-bit sums
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the quantiser's advice, which is for other tools, out of the log."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def measure_gain(old: Model, new: Model, pixels: Pixels, targets: Indices) -> Gain:
    """Compare a variant with the original on all test images, and time both in turns on one of them."""
    logits = [
        np.concatenate([model.classify(batch)[1] for batch in _cut(pixels)])
        for model in (old.as_classifier(), new.as_classifier())
    ]
    rights = [int((rows.argmax(1) == targets).sum()) for rows in logits]
    spread = np.std(logits[0] - logits[0].mean(axis=1, keepdims=True))
    difference = float(np.sqrt(np.mean((logits[1] - logits[0]) ** 2)) / spread)
    return Gain(measure_ratio(old, pixels[:1], new, pixels[:1]), (rights[0] - rights[1]) / len(targets), difference)


def check_gain(gain: Gain) -> str:
    """Whether a variant earns its place.

    Raises:
        NotWorthIt: too slow, too much accuracy lost, or too different.
    """
    told = (
        f"{gain.speedup:.2f} times as fast, {100 * gain.lost:.2f} points of accuracy lost, logits other by "
        f"{100 * gain.difference:.1f}%"
    )
    if not (gain.speedup >= LEAST_SPEEDUP and gain.lost <= MOST_LOST and gain.difference <= MOST_DIFFERENCE):
        raise NotWorthIt(
            f"{told}: not published, since at least {LEAST_SPEEDUP} times, at most {100 * MOST_LOST:.1f} points and "
            f"{100 * MOST_DIFFERENCE:.0f}% are wanted; on a processor with VNNI instructions it may be another"
        )
    return told


def _cut(pixels: Pixels) -> list[Pixels]:
    return [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
