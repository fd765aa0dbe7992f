"""What other tools read of an artifact repeats what evalmode's keys state, and is checked when the file is opened."""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evalmode
from evalmode.artifact.header import AXES
from evalmode.artifact.manifest import DIGEST, ClassifierManifest, TensorManifest, read_manifest
from evalmode.artifact.sealing import BLANK, ENTRY, check_digest, open_artifact, seal, state_credits
from evalmode.artifact.standard_keys import ADDED
from evalmode.certification.found.ultralytics import read_ultralytics
from evalmode.certification.verdicts import examine
from evalmode.errors import ArtifactInvalid
from evalmode.images.pixels import PixelContract
from evalmode.runtime.loading import load_artifact
from tests.conftest import COLOURS, colour_artifact, colour_graph

ARTIFACT = colour_artifact()
METADATA = open_artifact(ARTIFACT)[1].to_metadata()
FIXTURES = Path(__file__).parent / "fixtures"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=12) | st.text("\\'\"nx0\n\r\0", max_size=4), min_size=1, max_size=4))
def test_names_are_a_python_literal_whatever_the_labels(labels: list[str]) -> None:
    metadata = ClassifierManifest(tuple(labels), PixelContract(4, 4, 3)).to_metadata()
    assert ast.literal_eval(metadata["names"]) == dict(enumerate(labels))
    assert metadata["task"] == "classify"


def test_labels_that_utf8_cannot_encode_are_escaped() -> None:
    labels = ("\ud800", "a\n\x7f\0")
    graph, manifest = open_artifact(seal(colour_graph(), ClassifierManifest(labels, PixelContract(4, 4, 3))))
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert metadata["names"] == r"{0: '\ud800', 1: 'a\u000a\u007f\u0000'}"
    assert ast.literal_eval(metadata["names"]) == dict(enumerate(labels))
    assert graph.doc_string.endswith("by 2 labels: ?, a???.")
    assert manifest.labels == labels


def test_certify_reads_the_names_as_it_reads_those_of_ultralytics() -> None:
    facts = {fact.name: fact.value for fact in read_ultralytics(METADATA)}
    assert facts["labels"] == COLOURS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", "{0: 'green', 1: 'red', 2: 'blue'}"),
        ("names", "{0: 'red', 1: 'green'}"),
        ("names", "{}"),
        ("task", "detect"),
        ("Image.BitmapPixelFormat", "Bgr8"),
    ],
)
def test_a_key_that_contradicts_the_manifest_is_rejected(key: str, value: str) -> None:
    with pytest.raises(ArtifactInvalid, match=f"damaged.*{key} is stated twice, as "):
        read_manifest({**METADATA, key: value})


@pytest.mark.parametrize("key", ["Image.BitmapPixelFormat", "Image.ColorSpaceGamma", "Image.NominalPixelRange"])
def test_a_key_that_every_release_wrote_may_not_be_missing(key: str) -> None:
    with pytest.raises(ArtifactInvalid, match=f"damaged.*{key}"):
        read_manifest({name: value for name, value in METADATA.items() if name != key})


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("version-*/*.onnx")), ids=lambda path: path.parent.name)
def test_files_of_earlier_releases_lack_the_added_keys_and_are_read(path: Path) -> None:
    graph, _ = open_artifact(path.read_bytes())
    assert not {entry.key for entry in graph.metadata_props} & set(ADDED)


def test_the_input_has_the_denotations_of_an_image() -> None:
    graph, _ = open_artifact(ARTIFACT)
    (value,) = graph.graph.input
    assert value.type.denotation == "IMAGE"
    denotations = [axis.denotation for axis in value.type.tensor_type.shape.dim]
    assert denotations == ["DATA_BATCH", "DATA_FEATURE", "DATA_FEATURE", "DATA_CHANNEL"] == list(AXES)


def test_the_header_names_producer_and_purpose() -> None:
    graph, manifest = open_artifact(ARTIFACT)
    assert (graph.producer_name, graph.producer_version) == ("evalmode", evalmode.__version__)
    assert graph.doc_string == "Classifies RGB images of 4x4 pixels by 3 labels: red, green, blue."
    assert isinstance(manifest, ClassifierManifest)
    many = replace(manifest, labels=tuple("abcdefgh"), certificate=None)
    described = onnx.load_model_from_string(seal(colour_graph(), many))
    assert described.doc_string == "Classifies RGB images of 4x4 pixels by 8 labels: a, b, c, d, e and 3 more."


def test_the_header_of_a_network_of_tensors_names_its_inputs_and_outputs() -> None:
    graph = onnx.load_model_from_string(seal(colour_graph(), TensorManifest()))
    assert graph.doc_string == "Computes probabilities, logits of image."
    assert graph.graph.input[0].type.denotation == ""


def test_author_and_licence_are_stated_under_onnx_names() -> None:
    credited = state_credits(ARTIFACT, "Ada Lovelace", "MIT")
    graph, manifest = open_artifact(credited)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert (metadata["model_author"], metadata["model_license"]) == ("Ada Lovelace", "MIT")
    assert manifest.properties == {"network": "colours", "author": "Ada Lovelace", "license": "MIT"}
    assert [verdict for verdict in examine(credited) if not verdict.passed] == []
    assert state_credits(credited, None, None) == credited == state_credits(credited, "Ada Lovelace", None)
    assert state_credits(ARTIFACT, None, None) == ARTIFACT


@pytest.mark.parametrize("key", ["model_author", "model_license"])
def test_an_author_or_licence_that_contradicts_the_manifest_is_rejected(key: str) -> None:
    for manifest in (ClassifierManifest(COLOURS, PixelContract(4, 4, 3)), TensorManifest()):
        metadata = replace(manifest, properties={"author": "Ada", "license": "MIT"}).to_metadata()
        with pytest.raises(ArtifactInvalid, match=f"damaged.*{key} is stated twice, as another"):
            read_manifest({**metadata, key: "another"})


@pytest.mark.parametrize("value", [3, None, ["Ada"]])
def test_an_author_that_is_not_a_string_is_rejected(value: object) -> None:
    metadata = TensorManifest().to_metadata()
    with pytest.raises(ArtifactInvalid, match=r"model_author is .*: expected a string"):
        read_manifest({**metadata, "evalmode.author": json.dumps(value)})


def test_a_file_that_was_sealed_again_with_other_names_is_rejected() -> None:
    model = onnx.load_model_from_string(ARTIFACT)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    changed = {**metadata, "names": "{0: 'green', 1: 'red', 2: 'blue'}", DIGEST: BLANK.decode()}
    onnx.helper.set_model_props(model, changed)
    blank = model.SerializeToString(deterministic=True)
    resealed = blank.replace(ENTRY + BLANK, ENTRY + hashlib.sha256(blank).hexdigest().encode())
    check_digest(resealed)
    with pytest.raises(ArtifactInvalid, match="names is stated twice"):
        load_artifact(resealed)
