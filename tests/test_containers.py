"""The benchmark of the containers measures layers as registries keep them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import containers

NOISE = np.random.default_rng(0).bytes(1_000_000)  # gzip does not compress it


def save(path: Path, layers: list[bytes]) -> Path:
    """An archive as docker save writes it."""
    names = [f"{index}/layer.tar" for index in range(len(layers))]
    manifest = json.dumps([{"Config": "config.json", "Layers": names}]).encode()
    with tarfile.open(path, "w") as archive:
        for name, content in [*zip(names, layers, strict=True), ("manifest.json", manifest)]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_layers_are_compressed_before_they_are_measured(tmp_path: Path) -> None:
    noise, zeros = containers.measure_layers(save(tmp_path / "image.tar", [NOISE, bytes(len(NOISE))]))
    assert 1 <= noise < 1.01
    assert zeros < 0.01


def test_layers_of_the_base_are_left_out(tmp_path: Path) -> None:
    archive = save(tmp_path / "image.tar", [NOISE, NOISE[:10_000]])
    (above,) = containers.measure_layers(archive, shared=1)
    assert 0.01 <= above < 0.011


def test_layers_that_are_saved_compressed_keep_their_size(tmp_path: Path) -> None:
    layer = gzip.compress(bytes(100_000_000))
    assert containers.measure_layers(save(tmp_path / "image.tar", [layer])) == [len(layer) / 1e6]


def test_an_archive_without_its_layers_is_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "image.tar", "w") as archive:
        manifest = json.dumps([{"Layers": ["layer.tar"]}]).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(manifest)
        archive.addfile(info, io.BytesIO(manifest))
    with pytest.raises(KeyError, match="layer"):
        containers.measure_layers(tmp_path / "image.tar")
