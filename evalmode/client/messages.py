"""The content of requests and replies."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from evalmode.prediction import Prediction, Score
from evalmode.wire import classifier_pb2 as wire


def read_image(image: bytes | str | PathLike[str]) -> bytes:
    """The bytes of an encoded image.

    Args:
        image: The bytes, or the path of a file.

    Raises:
        OSError: The file cannot be read.
    """
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def read_pixels(pixels: Any) -> wire.Pixels:
    """Put pixels into a message.

    Args:
        pixels: uint8 (H, W, C), an array or another object with the buffer protocol.

    Raises:
        TypeError: The object has no buffer.
        ValueError: The buffer has another type or number of axes.
    """
    view = memoryview(pixels)
    shape = view.shape or ()
    if view.format != "B" or len(shape) != 3:
        raise ValueError(f"pixels have {len(shape)} axes of {view.format!r}: expected uint8 (height, width, channels)")
    height, width, channels = shape
    return wire.Pixels(data=view.tobytes(), height=height, width=width, channels=channels)


def read_prediction(reply: wire.PredictResponse) -> Prediction:
    """Convert a reply to a value.

    Args:
        reply: The server's message.
    """
    return Prediction(
        scores=tuple(Score(score.label, score.probability, score.index) for score in reply.scores),
        model=reply.model,
        version=reply.version,
        digest=reply.digest,
        decode_us=reply.decode_us,
        wait_us=reply.wait_us,
        inference_us=reply.inference_us,
    )
