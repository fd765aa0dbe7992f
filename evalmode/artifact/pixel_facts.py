"""The pixel contract as JSON values: everything that is done to an image before it enters the graph.

Arithmetic (scaling, mean, standard deviation, layout) is in the graph. A file states every rule, also those that have
one supported value only, so that a later release can support other values, and an older one refuses them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from evalmode.errors import ArtifactInvalid, UsageError
from evalmode.images.contract import (
    CHANNEL_ORDERS,
    CROP_OFFSETS,
    MODES,
    PixelContract,
    Resize,
    is_colour,
)
from evalmode.images.headers import MAX_SIDE
from evalmode.images.resizing import INTERPOLATIONS, MIN_CROP_RATIO

# Rules with one supported value.
FIXED: Mapping[str, Any] = {
    "layout": "NHWC",
    "dtype": "uint8",
    "range": [0, 255],
}
EXACT_SIZES = {True: "unchanged", False: "resized"}  # an image of the wanted size, by ``keeps_exact_size``


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


def _is_crop_ratio(value: Any) -> bool:
    return type(value) in (int, float) and MIN_CROP_RATIO <= value <= 1


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


_ORDERS = [order for orders in CHANNEL_ORDERS.values() for order in orders]

# Rules with several values: whether a value is supported, and the supported values in words.
VARIABLE: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "height": (_is_side, f"1 to {MAX_SIDE}"),
    "width": (_is_side, f"1 to {MAX_SIDE}"),
    "channels": (lambda value: type(value) is int and value in CHANNEL_ORDERS, "3 and 1"),
    "crop_ratio": (_is_crop_ratio, f"{MIN_CROP_RATIO} to 1"),
    "interpolation": (lambda value: isinstance(value, str) and value in INTERPOLATIONS, ", ".join(INTERPOLATIONS)),
    "jpeg_scaling": (_is_switch, "true and false"),
    "resize": (lambda value: isinstance(value, str) and value in MODES, ", ".join(MODES)),
    "exact_size": (
        lambda value: isinstance(value, str) and value in EXACT_SIZES.values(),
        " and ".join(EXACT_SIZES.values()),
    ),
    "antialias": (_is_switch, "true and false"),
    "exif_orientation": (_is_switch, "true and false"),
    "background": (lambda value: value is None or is_colour(value), "three integers of 0 to 255, and null,"),
    "channel_order": (lambda value: isinstance(value, str) and value in _ORDERS, ", ".join(_ORDERS)),
}
# Rules that are stated only where they are not the value of earlier files.
ADDED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "padding": (is_colour, "three integers of 0 to 255"),
    "crop_offset": (lambda value: isinstance(value, str) and value in CROP_OFFSETS, " and ".join(CROP_OFFSETS)),
}
KEYS = FIXED.keys() | VARIABLE.keys()


def write_contract(contract: PixelContract) -> dict[str, Any]:
    """Convert a pixel contract to JSON values that ``read_contract`` reads."""
    resize = contract.resize
    facts = {
        **FIXED,
        "height": contract.height,
        "width": contract.width,
        "channels": contract.channels,
        "channel_order": contract.channel_order,
        "resize": resize.mode,
        "exact_size": EXACT_SIZES[resize.keeps_exact_size],
        "crop_ratio": resize.crop_ratio,
        "interpolation": resize.interpolation,
        "antialias": resize.antialias,
        "jpeg_scaling": resize.jpeg_scaling,
        "exif_orientation": contract.exif_orientation,
        "background": None if contract.background is None else list(contract.background),
    }
    if resize.mode == "letterbox":
        facts["padding"] = list(resize.padding)
    if resize.crop_offset != Resize.crop_offset:
        facts["crop_offset"] = resize.crop_offset
    return facts


def read_contract(facts: Mapping[str, Any]) -> PixelContract:
    """Read the pixel contract of a file.

    Args:
        facts: The JSON values of ``evalmode.pixels``.

    Raises:
        ArtifactInvalid: A key is missing or unknown, or its value is not supported.
    """
    known = KEYS | ADDED.keys()
    needed = KEYS | ({"padding"} if facts.get("resize") == "letterbox" else set())
    unknown, missing = sorted(facts.keys() - known), sorted(needed - facts.keys())
    if unknown:
        raise _make_error(unknown[0], facts[unknown[0]], f"is unknown: the keys are {', '.join(sorted(known))}")
    if missing:
        raise ArtifactInvalid(f"evalmode.pixels is damaged: it has no {missing[0]}; export the network again")
    for key, (is_supported, supported) in {**VARIABLE, **ADDED}.items():
        if key in facts and not is_supported(facts[key]):
            raise _make_error(key, facts[key], f"is not supported: {supported} are")
    for key, value in FIXED.items():
        if json.dumps(facts[key]) != json.dumps(value):
            raise _make_error(key, facts[key], f"is not supported: {json.dumps(value)} is")
    orders = CHANNEL_ORDERS[facts["channels"]]
    if facts["channel_order"] not in orders:
        supported = " and ".join(map(json.dumps, orders)) + (" are" if len(orders) > 1 else " is")
        raise _make_error("channel_order", facts["channel_order"], f"is not supported: {supported}")
    return _build_contract(facts)


def _build_contract(facts: Mapping[str, Any]) -> PixelContract:
    """Build the contract of checked facts.

    Raises:
        ArtifactInvalid: Two of them do not fit together.
    """
    try:
        resize = Resize(
            float(facts["crop_ratio"]),
            facts["interpolation"],
            facts["jpeg_scaling"],
            facts["resize"],
            facts["antialias"],
            facts["exact_size"] == EXACT_SIZES[True],
            facts.get("padding", Resize.padding),
            facts.get("crop_offset", Resize.crop_offset),
        )
    except UsageError as error:
        raise ArtifactInvalid(f"evalmode.pixels is damaged: {error}; export the network again") from error
    return PixelContract(
        facts["height"],
        facts["width"],
        facts["channels"],
        resize,
        facts["channel_order"],
        facts["exif_orientation"],
        facts["background"],
    )


def _make_error(key: str, value: Any, what: str) -> ArtifactInvalid:
    """Return the error for a key or a value that this release does not read."""
    shown = json.dumps(value)[:80]
    return ArtifactInvalid(
        f"evalmode.pixels: {key} {shown} {what}; install the release that wrote the file, or export the network again",
        key=key,
        value=shown,
    )
