"""The header of an ONNX file, which Netron and other tools show: producer, description, and what the axes mean."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

import evalmode
from evalmode.artifact.manifest import ClassifierManifest, Manifest
from evalmode.artifact.standard_keys import UNPRINTABLE
from evalmode.artifact.tensors import INPUT

PRODUCER = "evalmode"
IMAGE = "IMAGE"
AXES = ("DATA_BATCH", "DATA_FEATURE", "DATA_FEATURE", "DATA_CHANNEL")  # ONNX has one name for height and width
MAX_NAMED = 5  # labels in the description


def write_header(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Write producer, description and denotations into an ONNX file.

    Source: https://github.com/onnx/onnx/blob/main/docs/TypeDenotation.md and DimensionDenotation.md.

    Args:
        model: The file, which is changed.
        manifest: The facts to describe.
    """
    model.producer_name, model.producer_version = PRODUCER, evalmode.__version__
    if not isinstance(manifest, ClassifierManifest):
        inputs, outputs = (_list_names(values) for values in (model.graph.input, model.graph.output))
        model.doc_string = f"Computes {outputs} of {inputs}."
        return
    model.doc_string = _describe_classifier(manifest)
    for value in model.graph.input:
        if value.name == INPUT:
            value.type.denotation = IMAGE
            for axis, denotation in zip(value.type.tensor_type.shape.dim, AXES, strict=False):
                axis.denotation = denotation


def _describe_classifier(manifest: ClassifierManifest) -> str:
    """Describe an image classifier in one sentence."""
    pixels, labels = manifest.pixels, manifest.labels
    others = len(labels) - MAX_NAMED
    named = ", ".join(labels[:MAX_NAMED]) + (f" and {others} more" if others > 0 else "")
    size = f"{pixels.height}x{pixels.width}"
    sentence = f"Classifies {pixels.channel_order} images of {size} pixels by {len(labels)} labels: {named}."
    return UNPRINTABLE.sub("?", sentence)


def _list_names(values: Iterable[onnx.ValueInfoProto]) -> str:
    return ", ".join(value.name for value in values)
