"""timm's ``config.json``: labels, and the ``pretrained_cfg`` of the evaluation transform.

Source: https://github.com/huggingface/pytorch-image-models, timm/models/_hub.py and timm/data/transforms_factory.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from evalmode.certification.found.facts import Fact, make_fact
from evalmode.certification.found.labels import make_labels
from evalmode.certification.found.place import Place
from evalmode.certification.found.values import (
    read_json,
    to_channels,
    to_numbers,
    to_ratio,
    to_side,
    to_spread,
)
from evalmode.images.resizing import INTERPOLATIONS

MODES = {"center": "crop", "squash": "squash"}  # border fills with the mean, which has no equal
DEFAULTS: dict[str, Any] = {  # of timm.data.resolve_data_config
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def read_timm(place: Place) -> Iterator[Fact]:
    """Read the ``config.json`` of timm in a folder."""
    path = place.folder / "config.json"
    config = read_json(path)
    if config is None or not isinstance(config.get("pretrained_cfg"), dict):
        return
    transform = config["pretrained_cfg"]
    source = f"{path}: pretrained_cfg"
    for names in (config.get("label_names"), transform.get("label_names")):
        if names is not None:
            yield make_labels(names, f"{path}: label_names")
    values = {**DEFAULTS, **{key: value for key, value in transform.items() if value}}
    yield Fact("scale", (0.0, 1.0), source)
    yield make_fact("mean", values["mean"], f"{source}.mean", to_numbers)
    yield make_fact("std", values["std"], f"{source}.std", to_spread)
    size: Any = None
    if "input_size" in values:
        size_fact = make_fact("size", values["input_size"], f"{source}.input_size", _to_size)
        yield size_fact
        size = size_fact.value
        if size:
            yield make_fact("channels", values["input_size"][0], f"{source}.input_size", to_channels)
    yield make_fact("resize", values["crop_mode"], f"{source}.crop_mode", _to_mode)
    yield Fact("crop_offset", "rounded", f"{source}.crop_mode")
    yield make_fact("crop_ratio", values["crop_pct"], f"{source}.crop_pct", lambda share: _to_crop_ratio(share, size))
    if size and size[0] != size[1]:
        yield Fact("interpolation", "bilinear", f"{source}.input_size")  # timm's, whatever is stated, if not square
    else:
        yield make_fact("interpolation", values["interpolation"], f"{source}.interpolation", _to_interpolation)


def _to_size(value: Any) -> tuple[int, int]:
    """(height, width) of (channels, height, width)."""
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("expected channels, height and width")
    return to_side(value[1]), to_side(value[2])


def _to_mode(value: Any) -> str:
    if not isinstance(value, str) or value not in MODES:
        raise ValueError(f"expected one of {', '.join(MODES)}")
    return MODES[value]


def _to_crop_ratio(value: Any, size: tuple[int, int] | None) -> float:
    """The ratio of whole pixels: timm rounds the resized side down."""
    share = to_ratio(value)
    return share if size is None else size[0] / math.floor(size[0] / share)


def _to_interpolation(value: Any) -> str:
    if not isinstance(value, str) or value not in INTERPOLATIONS:
        raise ValueError(f"expected one of {', '.join(INTERPOLATIONS)}")
    return value
