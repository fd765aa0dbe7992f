"""Properties of sealing and of metadata: a sealed manifest is read back, and changed bytes are rejected."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalmode.artifact.manifest import PREFIX, ClassifierManifest, TensorManifest, read_manifest
from evalmode.artifact.packing import pack_array, unpack_array
from evalmode.artifact.sealing import check_digest, open_artifact, seal
from evalmode.artifact.tensors import DTYPES
from evalmode.errors import ArtifactInvalid, DigestMismatch
from evalmode.images.pixels import PixelContract
from tests.conftest import colour_artifact, colour_graph
from tests.mutated import mutated

ARTIFACT = colour_artifact()
GRAPH = colour_graph()
METADATA = open_artifact(ARTIFACT)[1].to_metadata()
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
RESERVED = {"format_version", "labels", "pixels", "certificate", "digest"}
NAMES = st.text("abcdefghij_", min_size=1, max_size=12).filter(lambda name: name not in RESERVED)
PROPERTIES = st.dictionaries(NAMES, VALUES, max_size=4)
LABELS = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5).map(tuple)
CONTRACTS = st.builds(PixelContract, st.integers(1, 4096), st.integers(1, 4096), st.sampled_from((1, 3)))


@settings(max_examples=60, deadline=None)
@given(st.builds(ClassifierManifest, LABELS, CONTRACTS, PROPERTIES) | st.builds(TensorManifest, PROPERTIES))
def test_a_sealed_manifest_is_read_back(manifest: ClassifierManifest | TensorManifest) -> None:
    artifact = seal(GRAPH, manifest)
    check_digest(artifact)
    graph, opened = open_artifact(artifact)
    assert type(opened) is type(manifest)
    assert vars(opened) == vars(manifest)
    assert seal(graph, opened) == artifact


@settings(max_examples=150, deadline=None)
@given(mutated([ARTIFACT]))
def test_a_changed_artifact_is_rejected(changed: bytes) -> None:
    if changed == ARTIFACT:
        open_artifact(changed)
    else:
        with pytest.raises(ArtifactInvalid):
            open_artifact(changed)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | mutated([ARTIFACT]))
def test_any_other_bytes_have_no_valid_digest(content: bytes) -> None:
    if content != ARTIFACT:
        with pytest.raises(DigestMismatch):
            check_digest(content)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(METADATA)), VALUES.map(json.dumps) | st.text(max_size=40) | st.binary(max_size=20))
def test_any_metadata_are_read_or_rejected(key: str, value: str | bytes) -> None:
    try:
        manifest = read_manifest({**METADATA, key: value})  # type: ignore[dict-item]  # protobuf returns bytes, too
    except ArtifactInvalid:
        return
    assert isinstance(manifest, ClassifierManifest | TensorManifest)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["dtype", "shape", "data"]), VALUES), st.integers(0, 4))
def test_any_damaged_tensor_of_a_certificate_is_rejected(packed: dict[str, object], rows: int) -> None:
    certificate = json.loads(METADATA[PREFIX + "certificate"])
    certificate["targets"] = certificate["answers"] = [""] * rows
    certificate["outputs"]["logits"] = packed
    with pytest.raises(ArtifactInvalid):
        read_manifest({**METADATA, PREFIX + "certificate": json.dumps(certificate)})


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DTYPES), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms())
def test_arrays_survive_packing_and_unpacking(dtype: str, shape: list[int], random: object) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    unpacked = unpack_array(json.loads(json.dumps(pack_array(array))), shape[0])
    assert unpacked.dtype == array.dtype
    assert np.array_equal(unpacked, array)
