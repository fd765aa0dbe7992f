"""Graphs that are kept: a conversion takes seconds, and tests need the same graph often."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx
from torch import Tensor, nn

from evalmode.certification.quantize import quantize
from evalmode.images.pixels import Pixels
from training.onnx_export import Deployed, convert, export_network

Convert = Callable[[nn.Module, Tensor, list[str]], onnx.ModelProto]
ExportNetwork = Callable[[str, Deployed, tuple[int, int, int]], tuple[onnx.ModelProto, dict[str, str]]]
Quantize = Callable[[onnx.ModelProto, Pixels], onnx.ModelProto]


def keep_graphs(folder: Path) -> Convert:
    """Return a function like ``convert`` that converts each network once, whatever the process.

    Args:
        folder: The folder of the graphs.
    """

    def convert_once(module: nn.Module, example: Tensor, outputs: list[str]) -> onnx.ModelProto:
        numbers = {name: value for name, value in vars(module).items() if isinstance(value, int)}
        digest = hashlib.sha256(repr((numbers, example.dtype, example.shape, outputs)).encode())
        for name, tensor in module.state_dict().items():
            if not name.startswith("network.head."):  # a backbone ends before it
                digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        path = folder / f"{digest.hexdigest()}.onnx"
        if not path.exists():
            path.write_bytes(convert(module, example, outputs).SerializeToString())
        return onnx.load_from_string(path.read_bytes())

    return convert_once


def keep_exports() -> ExportNetwork:
    """Return a function like ``export_network`` that exports networks with equal modules and weights once."""
    kept: dict[str, tuple[bytes, dict[str, str]]] = {}

    def export_once(
        name: str, deployed: Deployed, shape: tuple[int, int, int]
    ) -> tuple[onnx.ModelProto, dict[str, str]]:
        modules = [(one, type(module).__name__, module.training) for one, module in deployed.network.named_modules()]
        digest = hashlib.sha256(repr((name, shape, deployed.temperature, modules)).encode())
        for one, tensor in deployed.state_dict().items():
            digest.update(one.encode() + tensor.contiguous().numpy().tobytes())
        key = digest.hexdigest()
        if key not in kept:
            graph, outputs = export_network(name, deployed, shape)
            kept[key] = graph.SerializeToString(), outputs
        content, outputs = kept[key]
        return onnx.load_from_string(content), dict(outputs)

    return export_once


def keep_quantized() -> Quantize:
    """Return a function like ``quantize`` that quantizes each graph once; the pixels are those of its training."""
    kept: dict[bytes, bytes] = {}

    def quantize_once(graph: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
        content = graph.SerializeToString(deterministic=True)
        if content not in kept:
            kept[content] = quantize(graph, pixels).SerializeToString()
        return onnx.load_from_string(kept[content])

    return quantize_once
