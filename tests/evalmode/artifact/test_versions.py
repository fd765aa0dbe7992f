"""Artifacts of every format version since 3 stay readable.

Each fixture was written by the release that had its format version. Each ``.npz`` holds inputs, and the outputs that
the release computed for them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from evalmode.artifact.manifest import READERS, ClassifierManifest, TensorManifest
from evalmode.artifact.sealing import open_artifact
from evalmode.artifact.tensors import PROBABILITIES
from evalmode.certification.verdicts import examine
from evalmode.images.pixels import PixelContract, Resize
from evalmode.runtime.loading import load_model

FIXTURES = Path(__file__).parent / "fixtures"
ARTIFACTS = sorted(FIXTURES.glob("version-*/*.onnx"))
KINDS = {"classifier": ClassifierManifest, "int8": ClassifierManifest, "tensors": TensorManifest}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_each_supported_version_has_fixtures() -> None:
    found = {(int(path.parent.name.removeprefix("version-")), path.stem) for path in ARTIFACTS}
    assert found == {(version, kind) for version in READERS for kind in KINDS}


@pytest.mark.parametrize("path", ARTIFACTS, ids=name_of)
def test_a_fixture_has_the_version_of_its_folder(path: Path) -> None:
    graph = onnx.load_model(path)
    stated = {entry.key: entry.value for entry in graph.metadata_props}["evalmode.format_version"]
    assert f"version-{json.loads(stated)}" == path.parent.name


@pytest.mark.parametrize("path", ARTIFACTS, ids=name_of)
def test_a_fixture_loads_replays_and_computes_the_same_bits(path: Path) -> None:
    model = load_model(path)
    assert type(model.manifest) is KINDS[path.stem]
    assert (model.batch_invariant, model.max_batch) == (True, 64)
    with np.load(path.with_suffix(".npz")) as recorded:
        inputs = {name.removeprefix("input_"): recorded[name] for name in recorded if name.startswith("input_")}
        expected = {name.removeprefix("output_"): recorded[name] for name in recorded if name.startswith("output_")}
    answers = model.run(inputs)
    assert answers.keys() == expected.keys()
    for name, array in expected.items():
        assert answers[name].dtype == array.dtype
        if name == PROBABILITIES:  # softmax depends on the processor's exponential function
            np.testing.assert_allclose(answers[name], array, rtol=0, atol=1e-6)
        else:
            assert np.array_equal(answers[name], array)


@pytest.mark.parametrize("path", ARTIFACTS, ids=name_of)
def test_a_fixture_passes_every_check(path: Path) -> None:
    assert [verdict for verdict in examine(path.read_bytes()) if not verdict.passed] == []


def test_the_manifest_of_a_classifier_is_read() -> None:
    _, manifest = open_artifact((FIXTURES / "version-3" / "classifier.onnx").read_bytes())
    assert isinstance(manifest, ClassifierManifest)
    assert manifest.labels == ("red", "green", "blue")
    assert manifest.pixels.shape == (4, 4, 3)
    assert manifest.properties == {"network": "colours", "temperature": 1.5, "versions": {"evalmode": "0.1.0"}}
    assert manifest.certificate is not None
    assert manifest.certificate.temperature == 1.5
    assert len(manifest.certificate.targets) == manifest.certificate.golden_count == 16


def test_the_manifest_of_a_network_of_tensors_is_read() -> None:
    _, manifest = open_artifact((FIXTURES / "version-3" / "tensors.onnx").read_bytes())
    assert isinstance(manifest, TensorManifest)
    assert manifest.properties == {"network": "adopted"}
    assert manifest.certificate is not None
    assert sorted(manifest.certificate.inputs) == ["left", "right"]
    assert sorted(manifest.certificate.outputs) == ["product", "sum"]


@pytest.mark.parametrize(
    ("version", "resize", "optional"),
    [(3, Resize(jpeg_scaling=False), ()), (4, Resize(0.875, "bicubic"), ("activation_map",))],
)
def test_the_contract_of_a_version_is_read(version: int, resize: Resize, optional: tuple[str, ...]) -> None:
    """Version 3 has one resize, which reads every pixel of a JPEG."""
    _, manifest = open_artifact((FIXTURES / f"version-{version}" / "classifier.onnx").read_bytes())
    assert isinstance(manifest, ClassifierManifest)
    assert manifest.pixels == PixelContract(4, 4, 3, resize)
    assert manifest.optional_outputs == optional
