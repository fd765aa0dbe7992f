"""The manifest survives writing and reading; damaged metadata are rejected with the cause."""

from __future__ import annotations

import json

import pytest

from evalmode.artifact.manifest import FORMAT_VERSION, ClassifierManifest, TensorManifest, read_manifest
from evalmode.errors import ArtifactInvalid
from evalmode.images.pixels import PixelContract, Resize

MANIFEST = ClassifierManifest(
    ("cat", "dög", 'quo"te'),
    PixelContract(32, 24, 3, Resize(0.875, "bicubic")),
    {"network": "small", "agreement": {"top1": 1.0}, "none": None},
)


def test_a_manifest_survives_the_round_trip() -> None:
    assert vars(read_manifest(MANIFEST.to_metadata())) == vars(MANIFEST)


def test_a_grey_manifest_without_properties_survives_the_round_trip() -> None:
    manifest = ClassifierManifest(("0", "1"), PixelContract(28, 20, 1))
    assert vars(read_manifest(manifest.to_metadata())) == vars(manifest)
    assert manifest.properties == {}


def test_metadata_is_the_documented_json() -> None:
    metadata = MANIFEST.to_metadata()
    assert list(metadata) == sorted(metadata)
    images = {
        name: metadata.pop("Image." + name) for name in ("BitmapPixelFormat", "ColorSpaceGamma", "NominalPixelRange")
    }
    assert images == {"BitmapPixelFormat": "Rgb8", "ColorSpaceGamma": "SRGB", "NominalPixelRange": "NominalRange_0_255"}
    assert metadata.pop("names") == """{0: 'cat', 1: 'dög', 2: 'quo"te'}"""
    assert metadata.pop("task") == "classify"
    assert {key.removeprefix("evalmode."): json.loads(value) for key, value in metadata.items()} == {
        "format_version": FORMAT_VERSION,
        "labels": ["cat", "dög", 'quo"te'],
        "pixels": {
            "height": 32,
            "width": 24,
            "channels": 3,
            "channel_order": "RGB",
            "layout": "NHWC",
            "dtype": "uint8",
            "range": [0, 255],
            "resize": "crop",
            "exact_size": "unchanged",
            "crop_ratio": 0.875,
            "interpolation": "bicubic",
            "antialias": True,
            "jpeg_scaling": True,
            "exif_orientation": True,
            "background": [255, 255, 255],
        },
        "optional_outputs": [],
        "network": "small",
        "agreement": {"top1": 1.0},
        "none": None,
    }


def test_metadata_is_the_same_text_for_the_same_facts() -> None:
    orders = ({"a": {"x": 1, "y": 2}, "b": 3}, {"b": 3, "a": {"y": 2, "x": 1}})
    texts = [list(ClassifierManifest(("0",), PixelContract(1, 1, 1), facts).to_metadata().items()) for facts in orders]
    assert texts[0] == texts[1]


def test_keys_of_other_tools_are_ignored() -> None:
    assert vars(read_manifest({**MANIFEST.to_metadata(), "author": "not JSON"})) == vars(MANIFEST)


@pytest.mark.parametrize("metadata", [{}, {"author": "name"}], ids=["none", "another tool's"])
def test_a_file_without_metadata_of_evalmode_is_rejected(metadata: dict[str, str]) -> None:
    with pytest.raises(ArtifactInvalid, match="not an evalmode artifact"):
        read_manifest(metadata)


@pytest.mark.parametrize("version", ["0", "1", '"2"'])
def test_an_unsupported_format_version_is_rejected_with_both_versions(version: str) -> None:
    metadata = {**MANIFEST.to_metadata(), "evalmode.format_version": version}
    with pytest.raises(ArtifactInvalid, match="this evalmode reads 3, 4: export it again") as caught:
        read_manifest(metadata)
    assert caught.value.facts == {"format_version": version.strip('"')}


def test_a_missing_key_is_named() -> None:
    metadata = MANIFEST.to_metadata()
    del metadata["evalmode.labels"]
    with pytest.raises(ArtifactInvalid, match=r"damaged: KeyError.*labels"):
        read_manifest(metadata)


def test_a_manifest_without_pixels_is_a_tensor_manifest() -> None:
    metadata = MANIFEST.to_metadata()
    del metadata["evalmode.pixels"]
    manifest = read_manifest(metadata)
    assert isinstance(manifest, TensorManifest)
    assert manifest.image_inputs == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", "["),
        ("labels", "3"),
        ("labels", "null"),
        ("pixels", '"32x24"'),
        ("pixels", "[32, 24, 3]"),
        ("pixels", '{"height": 32, "width": 24}'),
        ("pixels", '{"height": "tall", "width": 24, "channels": 3}'),
        ("pixels", '{"height": null, "width": 24, "channels": 3}'),
        ("network", "not JSON"),
    ],
)
def test_damaged_values_are_rejected(key: str, value: str) -> None:
    with pytest.raises(ArtifactInvalid, match="damaged"):
        read_manifest({**MANIFEST.to_metadata(), f"evalmode.{key}": value})


def test_the_size_of_metadata_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalmode.artifact.manifest.MAX_METADATA_LENGTH", 500)
    with pytest.raises(ArtifactInvalid, match=r"\d+ characters of metadata, at most 500 are allowed"):
        read_manifest(TensorManifest({"long": "x" * 500}).to_metadata())


@pytest.mark.parametrize("text", ["[" + "[]," * 2**20 + "[]]", '{"a":' * 2**20, "[" + "{}," * 2**20 + "{}]"])
def test_metadata_with_too_many_values_are_rejected_before_they_are_parsed(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("evalmode.artifact.manifest.json.loads", None)
    with pytest.raises(ArtifactInvalid, match=r"\d+ values in the metadata, at most 1000000 are allowed"):
        read_manifest({**MANIFEST.to_metadata(), "evalmode.more": text})


def test_metadata_nested_too_deeply_are_rejected() -> None:
    with pytest.raises(ArtifactInvalid, match="nested too deeply"):
        read_manifest({**MANIFEST.to_metadata(), "evalmode.more": "[" * 500_000})
