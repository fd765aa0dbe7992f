"""Graphs of backbones that are kept in a folder: a conversion takes seconds, and tests need the same graph often."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx
from torch import nn

from training.onnx_export import convert

Convert = Callable[[nn.Module, tuple[int, int, int], list[str]], onnx.ModelProto]


def keep_graphs(folder: Path) -> Convert:
    """Return a function like ``convert`` that converts each network once, whatever the process.

    Args:
        folder: The folder of the graphs.
    """

    def convert_once(module: nn.Module, shape: tuple[int, int, int], outputs: list[str]) -> onnx.ModelProto:
        numbers = {name: value for name, value in vars(module).items() if isinstance(value, int)}
        digest = hashlib.sha256(repr((numbers, shape, outputs)).encode())
        for name, tensor in module.state_dict().items():
            if not name.startswith("network.head."):  # a backbone ends before it
                digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        path = folder / f"{digest.hexdigest()}.onnx"
        if not path.exists():
            path.write_bytes(convert(module, shape, outputs).SerializeToString())
        return onnx.load_from_string(path.read_bytes())

    return convert_once
