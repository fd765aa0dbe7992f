"""The pixel contract as JSON values: everything that is done to an image before it enters the graph.

Arithmetic (scaling, mean, standard deviation, layout) is in the graph. A file states every rule, also those that have
one supported value only, so that a later release can support other values, and an older one refuses them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from evalmode.errors import ArtifactInvalid
from evalmode.images.headers import MAX_SIDE
from evalmode.images.pixels import PixelContract, Resize
from evalmode.images.resizing import INTERPOLATIONS, MIN_CROP_RATIO

# Rules with one supported value.
FIXED: Mapping[str, Any] = {
    "layout": "NHWC",
    "dtype": "uint8",
    "range": [0, 255],
    "resize": "crop",  # the shorter side, then a crop of the centre
    "exact_size": "unchanged",  # an image of the wanted size is neither resized nor cropped
    "antialias": True,  # not for interpolation nearest, which has no filter
    "exif_orientation": True,
    "background": [255, 255, 255],  # under transparent pixels
}
CHANNEL_ORDERS = {3: "RGB", 1: "grey"}


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


def _is_crop_ratio(value: Any) -> bool:
    return type(value) in (int, float) and MIN_CROP_RATIO <= value <= 1


# Rules with several values: whether a value is supported, and the supported values in words.
VARIABLE: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "height": (_is_side, f"1 to {MAX_SIDE}"),
    "width": (_is_side, f"1 to {MAX_SIDE}"),
    "channels": (lambda value: type(value) is int and value in CHANNEL_ORDERS, "3 and 1"),
    "crop_ratio": (_is_crop_ratio, f"{MIN_CROP_RATIO} to 1"),
    "interpolation": (lambda value: isinstance(value, str) and value in INTERPOLATIONS, ", ".join(INTERPOLATIONS)),
    "jpeg_scaling": (lambda value: isinstance(value, bool), "true and false"),
}
KEYS = FIXED.keys() | VARIABLE.keys() | {"channel_order"}


def write_contract(contract: PixelContract) -> dict[str, Any]:
    """Convert a pixel contract to JSON values that ``read_contract`` reads."""
    return {
        **FIXED,
        "height": contract.height,
        "width": contract.width,
        "channels": contract.channels,
        "channel_order": CHANNEL_ORDERS[contract.channels],
        **vars(contract.resize),
    }


def read_contract(facts: Mapping[str, Any]) -> PixelContract:
    """Read the pixel contract of a file.

    Args:
        facts: The JSON values of ``evalmode.pixels``.

    Raises:
        ArtifactInvalid: A key is missing or unknown, or its value is not supported.
    """
    unknown, missing = sorted(facts.keys() - KEYS), sorted(KEYS - facts.keys())
    if unknown:
        raise _make_error(unknown[0], facts[unknown[0]], f"is unknown: the keys are {', '.join(sorted(KEYS))}")
    if missing:
        raise ArtifactInvalid(f"evalmode.pixels is damaged: it has no {missing[0]}; export the network again")
    for key, (is_supported, supported) in VARIABLE.items():
        if not is_supported(facts[key]):
            raise _make_error(key, facts[key], f"is not supported: {supported} are")
    for key, value in {**FIXED, "channel_order": CHANNEL_ORDERS[facts["channels"]]}.items():
        if json.dumps(facts[key]) != json.dumps(value):
            raise _make_error(key, facts[key], f"is not supported: {json.dumps(value)} is")
    resize = Resize(float(facts["crop_ratio"]), facts["interpolation"], facts["jpeg_scaling"])
    return PixelContract(facts["height"], facts["width"], facts["channels"], resize)


def _make_error(key: str, value: Any, what: str) -> ArtifactInvalid:
    """Return the error for a key or a value that this release does not read."""
    shown = json.dumps(value)[:80]
    return ArtifactInvalid(
        f"evalmode.pixels: {key} {shown} {what}; install the release that wrote the file, or export the network again",
        key=key,
        value=shown,
    )
