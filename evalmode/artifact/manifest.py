"""What an artifact says about itself: the metadata inside ``model.onnx``, written at export and read at load."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from evalmode.artifact.certificate import Certificate
from evalmode.errors import ArtifactInvalid, DigestMismatch, ImagesNotTaken, OperatorNotAllowed
from evalmode.images.pixels import RESIZE, PixelContract
from evalmode.limits import MIB

FORMAT_VERSION = 3
PREFIX = "evalmode."
DIGEST = PREFIX + "digest"
BLANK = b"0" * 64  # stands where the digest will
_ENTRY = (
    b"\n" + bytes([len(DIGEST)]) + DIGEST.encode() + b"\x12\x40"
)  # as protobuf writes the key, before 64 characters
MAX_METADATA_LENGTH = 128 * MIB  # characters: a certificate of the largest size that does not compress, and labels
MAX_METADATA_VALUES = 1_000_000  # in JSON, some hundred bytes each once read
Found = TypeVar("Found", bound=Message)
DOMAINS = ("", "ai.onnx", "ai.onnx.ml")  # operators that every onnxruntime has; others may run anybody's code


@dataclass(frozen=True, eq=False)
class Manifest:
    """The facts that travel in the file; docs/artifact.md lists them.

    Attributes:
        labels: class names, in the order of the network's outputs; none of a network that is no classifier.
        image: the shape of the pixels that the graph takes; None: it takes other tensors.
        properties: what else the export recorded, JSON values by name (network, training, agreement).
        certificate: what the network answers to golden images; None: nobody vouches for it.
    """

    labels: tuple[str, ...]
    image: PixelContract | None
    properties: Mapping[str, Any] = field(default_factory=dict)
    certificate: Certificate | None = None

    @property
    def pixels(self) -> PixelContract:
        """The shape of the pixels that the graph takes.

        Raises:
            ImagesNotTaken: it takes other tensors.
        """
        if self.image is None:
            raise ImagesNotTaken("the model takes tensors, not images: ask for it by ModelInfer")
        return self.image

    def to_metadata(self) -> dict[str, str]:
        """Write the manifest as ONNX metadata properties: sorted keys, JSON values, ONNX's own keys of images."""
        facts = {"format_version": FORMAT_VERSION, "labels": self.labels, **self.properties}
        if self.certificate:
            facts["certificate"] = self.certificate.to_json()
        if self.image:
            how = {"layout": "NHWC", "dtype": "uint8", "range": [0, 255], "resize": RESIZE}
            facts["pixels"] = {**vars(self.image), **how}
        return {
            **_describe_image(self.image),
            **{PREFIX + name: json.dumps(facts[name], sort_keys=True) for name in sorted(facts)},
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Manifest:
        """Read what ``to_metadata`` wrote.

        Raises:
            ArtifactInvalid: the keys are missing, malformed, or of a format version this code does not know.
        """
        try:  # what is no UTF-8 comes as bytes
            ours = {key.removeprefix(PREFIX): metadata[key] for key in metadata if key.startswith(PREFIX)}
            _check_extent(ours)
            facts = {name: json.loads(value) for name, value in ours.items() if PREFIX + name != DIGEST}
            version = facts.pop("format_version", None)
            if version != FORMAT_VERSION:
                what_to_do = "export it again or change evalmode's version"
                raise ArtifactInvalid(
                    f"evalmode.format_version is {version}, this evalmode reads {FORMAT_VERSION}: "
                    + (what_to_do if version is not None else "not an evalmode artifact; evalmode certify makes one"),
                    format_version=version,
                )
            labels, pixels = tuple(map(str, facts.pop("labels"))), facts.pop("pixels", None)
            contract = None
            if pixels is not None:
                contract = PixelContract(*(int(pixels[side]) for side in ("height", "width", "channels")))
            certificate = facts.pop("certificate", None)
            if certificate is not None:
                certificate = Certificate.from_json(certificate)
                if contract:
                    _check_said_twice("the temperature", certificate.temperature, facts.get("temperature", 1.0))
            for key, value in _describe_image(contract).items():
                _check_said_twice(key, metadata[key], value)
            return cls(labels, contract, facts, certificate)
        except RecursionError as error:
            raise ArtifactInvalid("the artifact's metadata is damaged: its JSON is nested too deeply") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, zlib.error) as error:
            raise ArtifactInvalid(f"the artifact's metadata is damaged: {error!r}") from error


def _check_extent(texts: Mapping[str, str]) -> None:
    """Refuse metadata that would take much more memory as JSON values than as text.

    Raises:
        ArtifactInvalid: too many characters, or too many values.
    """
    length = sum(map(len, texts.values()))
    if length > MAX_METADATA_LENGTH:
        raise ArtifactInvalid(f"{length} characters of metadata, at most {MAX_METADATA_LENGTH} are allowed")
    values = sum(text.count(sign) for text in texts.values() for sign in "[{,")  # each value but the first has one
    if values > MAX_METADATA_VALUES:
        raise ArtifactInvalid(f"{values} values in the metadata, at most {MAX_METADATA_VALUES} are allowed")


def _describe_image(image: PixelContract | None) -> dict[str, str]:
    """ONNX's own keys for what the pixels are."""
    if image is None:
        return {}
    return {
        "Image.BitmapPixelFormat": "Rgb8" if image.channels == 3 else "Gray8",
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": "NominalRange_0_255",
    }


def _check_said_twice(what: str, one: object, other: object) -> None:
    if one != other:
        raise ValueError(f"{what} is {one!r} in one place and {other!r} in another")


def seal(graph: onnx.ModelProto, manifest: Manifest) -> bytes:
    """The artifact's bytes: the graph with what it says about itself. Equal inputs give equal bytes."""
    sealed = onnx.ModelProto()
    sealed.CopyFrom(graph)
    onnx.helper.set_model_props(sealed, {**manifest.to_metadata(), DIGEST: BLANK.decode()})
    onnx.checker.check_model(sealed, full_check=True)
    blank = sealed.SerializeToString(deterministic=True)
    return blank.replace(_ENTRY + BLANK, _ENTRY + hashlib.sha256(blank).hexdigest().encode())


def open_artifact(artifact: bytes) -> tuple[onnx.ModelProto, Manifest]:
    """Read an artifact, and refuse what must not reach onnxruntime.

    Raises:
        ArtifactInvalid: not an artifact, changed since it was sealed, or with operators or data from elsewhere.
    """
    try:
        graph = onnx.load_model_from_string(artifact)
    except Exception as error:  # protobuf's decoder raises types of its own
        raise ArtifactInvalid(f"not an ONNX file, or a truncated one: {error}") from error
    manifest = Manifest.from_metadata({entry.key: entry.value for entry in graph.metadata_props})
    check_digest(artifact)
    check_operators(graph)
    return graph, manifest


def digest_file(artifact: bytes) -> str:
    """``sha256:`` and the hexadecimal digest of a whole file: how GetModel, export and check name it."""
    return "sha256:" + hashlib.sha256(artifact).hexdigest()


def check_digest(artifact: bytes) -> str:
    """The digest the artifact was sealed with, hexadecimal.

    Raises:
        DigestMismatch: the file has none, or other bytes than it was sealed with.
    """
    head, found, tail = artifact.partition(_ENTRY)
    if not found or _ENTRY in tail:
        raise DigestMismatch("the artifact has no digest, or more than one: it was not sealed by evalmode")
    stated, actual = tail[:64], hashlib.sha256(head + found + BLANK + tail[64:]).hexdigest().encode()
    if stated != actual:
        raise DigestMismatch(
            f"the file's digest is {actual.decode()}, it was sealed with {stated.decode(errors='replace')}: "
            "it was changed or damaged since; copy or export it again"
        )
    return actual.decode()


def check_operators(graph: onnx.ModelProto) -> str:
    """Refuse a graph that needs more than this file and ONNX's own operators.

    Raises:
        OperatorNotAllowed: an operator of another domain, a function, a field that this onnx does not know, or weights
            in another file.
    """
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in walk(graph, onnx.NodeProto) if node.domain not in DOMAINS}
    )
    if foreign or graph.functions:
        named = foreign or [f"{function.domain}.{function.name}" for function in graph.functions]
        raise OperatorNotAllowed(f"operators that are not ONNX's own are not run: {', '.join(named)}")
    outside = [weights.name for weights in walk(graph, onnx.TensorProto) if _is_outside(weights)]
    if outside:
        raise OperatorNotAllowed(
            f"weights outside the file are not read: {', '.join(outside[:3])}; an artifact is one file"
        )
    for message in walk(graph, Message):
        if len(unknown := UnknownFieldSet(message)):
            raise OperatorNotAllowed(
                f"{message.DESCRIPTOR.name} has field {unknown[0].field_number}, which onnx {onnx.__version__} does not"
                " know and onnxruntime may: export it for an older ONNX, or install a newer onnx"
            )
    return "ONNX's own, everything in this file"


def _is_outside(weights: onnx.TensorProto) -> bool:
    return weights.data_location != onnx.TensorProto.DEFAULT or len(weights.external_data) > 0


def walk(message: Message, kind: type[Found]) -> Iterator[Found]:
    """Every message of a kind inside a message, itself included, wherever its descriptor allows one.

    Fields are taken from the descriptors, not from a list of places, so that a place that is new in ONNX is not missed.

    Args:
        message: to look through.
        kind: of the messages to find; ``Message`` finds all.
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
        pending.extend(reversed(inner))  # so that what stands first in the file is found first
