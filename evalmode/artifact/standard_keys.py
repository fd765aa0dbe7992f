"""Metadata properties that other tools read: ONNX's own keys, and Ultralytics' ``names`` and ``task``.

They repeat what evalmode's keys state. A file in which the two differ is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evalmode.images.contract import PixelContract

BITMAP_FORMATS = {"RGB": "Rgb8", "BGR": "Bgr8", "grey": "Gray8"}  # ONNX's names of channel orders
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and what UTF-8 cannot encode
AUTHOR, LICENSE = "author", "license"  # properties of a manifest
STANDARD = {AUTHOR: "model_author", LICENSE: "model_license"}  # property -> ONNX's key
ADDED = ("names", "task", *STANDARD.values())  # keys that earlier files lack


def describe_classifier(
    labels: Sequence[str], contract: PixelContract, properties: Mapping[str, Any]
) -> dict[str, str]:
    """Return the keys for other tools of an image classifier.

    Args:
        labels: The labels, in the order of the outputs.
        contract: The pixels that the graph takes.
        properties: The properties of the manifest.

    Raises:
        ValueError: The author or the licence is not a string.
    """
    return {**_describe_image(contract), **_describe_labels(labels), **describe_credits(properties)}


def _describe_image(contract: PixelContract) -> dict[str, str]:
    """Return ONNX's metadata properties for images.

    Source: https://github.com/onnx/onnx/blob/main/docs/MetadataProps.md.
    """
    return {
        "Image.BitmapPixelFormat": BITMAP_FORMATS[contract.channel_order],
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": "NominalRange_0_255",
    }


def _describe_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return the metadata properties that Ultralytics reads of a classifier: ``names`` and ``task``.

    Source: https://github.com/ultralytics/ultralytics, ultralytics/nn/backends/base.py, apply_metadata: ``names`` is a
    Python literal as text.
    """
    names = ", ".join(f"{index}: {_quote(label)}" for index, label in enumerate(labels))
    return {"names": f"{{{names}}}", "task": "classify"}


def describe_credits(properties: Mapping[str, Any]) -> dict[str, str]:
    """Return ONNX's metadata properties for the author and the licence, if a manifest states them.

    Source: https://github.com/onnx/onnx/blob/main/docs/IR.md#optional-metadata.

    Args:
        properties: The properties of the manifest.

    Raises:
        ValueError: One of them is not a string.
    """
    stated = {key: properties[name] for name, key in STANDARD.items() if name in properties}
    for key, value in stated.items():
        if not isinstance(value, str):
            raise ValueError(f"{key} is {str(value)[:80]}: expected a string")
    return stated


def check_standard(metadata: Mapping[str, str], derived: Mapping[str, str]) -> None:
    """Check that the keys for other tools repeat what evalmode's keys state.

    Args:
        metadata: The metadata properties of a file.
        derived: The keys and values that follow from its manifest.

    Raises:
        ValueError: A value is another one.
        KeyError: A key is missing that every release has written.
    """
    for key, value in derived.items():
        if key in ADDED and key not in metadata:
            continue
        if metadata[key] != value:
            raise ValueError(f"{key} is stated twice, as {str(metadata[key])[:80]} and by the manifest as {value[:80]}")


def _quote(label: str) -> str:
    """Write a label as a Python literal, in the same way in every release of Python."""
    escaped = label.replace("\\", "\\\\").replace("'", "\\'")
    escaped = UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", escaped)
    return f"'{escaped}'"
