"""Tests on a GPU with onnxruntime-gpu: ``python -m pytest -m gpu tests/evalmode/runtime``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalmode.client import Client
from evalmode.runtime.loading import LoadOptions, load_model
from tests.conftest import COLOURS, encode, plain, serving

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_serves_on_cuda(colours: Path, provider: str) -> None:
    with serving(colours, "--provider", provider) as running, Client(running.address) as client:
        assert client.get_model().provider == "CUDA"
        assert [client.predict(encode(plain(colour, (8, 8)))).label for colour in ("red", "lime", "blue")] == list(
            COLOURS
        )
        code, logged = running.stop()
    assert code == 0
    assert "on CUDA" in logged
    assert "the CPU, because" not in logged


def test_cuda_agrees_with_the_cpu(colour_file: Path) -> None:
    on_cpu, on_cuda = (
        load_model(colour_file, options=LoadOptions(provider=provider)).as_classifier() for provider in ("cpu", "cuda")
    )
    assert on_cuda.session.get_providers()[0] == "CUDAExecutionProvider"
    batch = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), np.uint8)
    for cpu_output, cuda_output in zip(on_cpu.classify(batch), on_cuda.classify(batch), strict=True):
        assert np.allclose(cpu_output, cuda_output, rtol=1e-5, atol=1e-5)
