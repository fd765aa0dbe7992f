"""A network of another tool, and labelled images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.conftest import COLOURS, colour_graph


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images of noise in each of three colours, in a folder per label."""
    rng = np.random.default_rng(0)
    for channel, label in enumerate(COLOURS):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 100, (4, 4, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / label / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """The graph of colours as another tool would export it: float32 (N, 4, 4, 3), scaled or not, to logits."""
    graph = colour_graph()
    graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    del graph.graph.output[0]  # the probabilities
    graph.graph.node.pop()
    onnx.save(graph, tmp_path / "network.onnx")
    return tmp_path / "network.onnx"
