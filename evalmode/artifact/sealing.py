"""Sealing: an ONNX graph and its manifest become one file with a digest, and are checked when it is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from evalmode.artifact.header import write_header
from evalmode.artifact.manifest import DIGEST, Manifest, read_manifest
from evalmode.artifact.standard_keys import AUTHOR, LICENSE
from evalmode.errors import ArtifactInvalid, DigestMismatch, OperatorNotAllowed

BLANK = b"0" * 64  # stands in place of the digest while the digest is computed
# The key of the digest as protobuf writes it, before the 64 characters of its value.
ENTRY = b"\n" + bytes([len(DIGEST)]) + DIGEST.encode() + b"\x12\x40"
DOMAINS = ("", "ai.onnx", "ai.onnx.ml")  # every onnxruntime has these operators; others could run arbitrary code
Found = TypeVar("Found", bound=Message)


def seal(graph: onnx.ModelProto, manifest: Manifest) -> bytes:
    """Join a graph and its manifest to an artifact. Equal arguments give equal bytes.

    Args:
        graph: The network; its metadata properties, producer and description are replaced.
        manifest: The facts to store in the file.

    Returns:
        The bytes of ``model.onnx``.

    Raises:
        ArtifactInvalid: An optional output in the manifest is not an output of the graph.
    """
    _check_optional_outputs(graph, manifest)
    sealed = onnx.ModelProto()
    sealed.CopyFrom(graph)
    write_header(sealed, manifest)
    onnx.helper.set_model_props(sealed, {**manifest.to_metadata(), DIGEST: BLANK.decode()})
    onnx.checker.check_model(sealed, full_check=True)
    blank = sealed.SerializeToString(deterministic=True)
    return blank.replace(ENTRY + BLANK, ENTRY + hashlib.sha256(blank).hexdigest().encode())


def state_credits(artifact: bytes, author: str | None, licence: str | None) -> bytes:
    """Seal an artifact again with its author and licence. Its certificate stays the same.

    Args:
        artifact: The bytes of ``model.onnx``.
        author: Who made it; None leaves what the artifact states.
        licence: The name of its licence; None leaves what the artifact states.

    Returns:
        The bytes of the new artifact; the same bytes if both are None.

    Raises:
        ArtifactInvalid: The file is not an artifact.
    """
    stated = {name: text for name, text in ((AUTHOR, author), (LICENSE, licence)) if text is not None}
    if not stated:
        return artifact
    graph, manifest = open_artifact(artifact)
    return seal(graph, replace(manifest, properties={**manifest.properties, **stated}))


def open_artifact(artifact: bytes) -> tuple[onnx.ModelProto, Manifest]:
    """Read an artifact, and check that it is safe to pass to onnxruntime.

    Args:
        artifact: The bytes of ``model.onnx``.

    Returns:
        The graph and its manifest.

    Raises:
        ArtifactInvalid: The file is not an artifact, has changed since it was sealed, needs operators or data that are
            not in the file, or lacks an output that its manifest names.
    """
    try:
        graph = onnx.load_model_from_string(artifact)
    except Exception as error:  # protobuf's decoder raises types of its own
        raise ArtifactInvalid(f"not an ONNX file, or a truncated one: {error}") from error
    manifest = read_manifest({entry.key: entry.value for entry in graph.metadata_props})
    check_digest(artifact)
    check_operators(graph)
    _check_optional_outputs(graph, manifest)
    return graph, manifest


def _check_optional_outputs(graph: onnx.ModelProto, manifest: Manifest) -> None:
    outputs = [output.name for output in graph.graph.output]
    missing = [name for name in manifest.optional_outputs if name not in outputs]
    if missing:
        raise ArtifactInvalid(
            f"evalmode.optional_outputs names {missing[0]}, which the graph does not have: its outputs are "
            f"{', '.join(outputs)}"
        )


def digest_file(artifact: bytes) -> str:
    """Return ``sha256:`` and the hexadecimal digest of a whole file, by which GetModel, export and check name it."""
    return "sha256:" + hashlib.sha256(artifact).hexdigest()


def check_digest(artifact: bytes) -> str:
    """Check that a file is unchanged since it was sealed.

    Args:
        artifact: The bytes of ``model.onnx``.

    Returns:
        The digest that the file was sealed with, hexadecimal.

    Raises:
        DigestMismatch: The file has no digest, or its bytes have changed.
    """
    head, found, tail = artifact.partition(ENTRY)
    if not found or ENTRY in tail:
        raise DigestMismatch("the artifact has no digest, or more than one: it was not sealed by evalmode")
    stated, actual = tail[:64], hashlib.sha256(head + found + BLANK + tail[64:]).hexdigest().encode()
    if stated != actual:
        raise DigestMismatch(
            f"the file's digest is {actual.decode()}, it was sealed with {stated.decode(errors='replace')}: "
            "it was changed or damaged since; copy or export it again"
        )
    return actual.decode()


def check_operators(graph: onnx.ModelProto) -> str:
    """Check that a graph needs nothing but its own file and the standard operators of ONNX.

    Args:
        graph: The network.

    Returns:
        The result in words.

    Raises:
        OperatorNotAllowed: The graph has operators of another domain, functions, fields that the installed onnx does
            not know, or weights in another file.
    """
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in walk(graph, onnx.NodeProto) if node.domain not in DOMAINS}
    )
    if foreign or graph.functions:
        named = foreign or [f"{function.domain}.{function.name}" for function in graph.functions]
        raise OperatorNotAllowed(f"operators outside of the ONNX standard are not allowed: {', '.join(named)}")
    outside = [weights.name for weights in walk(graph, onnx.TensorProto) if _is_outside(weights)]
    if outside:
        raise OperatorNotAllowed(
            f"weights in another file are not allowed: {', '.join(outside[:3])}; an artifact is a single file"
        )
    for message in walk(graph, Message):
        if len(unknown := UnknownFieldSet(message)):
            raise OperatorNotAllowed(
                f"{message.DESCRIPTOR.name} has field {unknown[0].field_number}, which onnx {onnx.__version__} does not"
                " know and onnxruntime may: export it for an older ONNX, or install a newer onnx"
            )
    return "ONNX standard operators only, all data in this file"


def _is_outside(weights: onnx.TensorProto) -> bool:
    return weights.data_location != onnx.TensorProto.DEFAULT or len(weights.external_data) > 0


def walk(message: Message, kind: type[Found]) -> Iterator[Found]:
    """Yield every message of a type inside a message, itself included, in the order of the file.

    Fields are found by their descriptors, so that fields that are new in ONNX are included.

    Args:
        message: The message to search.
        kind: The type of the messages to find; ``Message`` finds all.
    """
    pending: list[Message] = [message]
    while pending:
        found = pending.pop()
        if isinstance(found, kind):
            yield found
        inner: list[Message] = []
        for descriptor, value in found.ListFields():
            if descriptor.message_type is not None:
                inner.extend(value if descriptor.is_repeated else [value])
        pending.extend(reversed(inner))  # a stack: the first of the file must be popped first
