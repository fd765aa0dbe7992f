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

MODES = {"center": "crop", "squash": "squash", "border": "letterbox"}
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
    yield from _read_resize(values, size, source)


def _read_resize(values: dict[str, Any], size: tuple[int, int] | None, source: str) -> Iterator[Fact]:
    """Mode of the resize, crop ratio, interpolation, and the colour of a border, which is the mean."""
    mode = make_fact("resize", values["crop_mode"], f"{source}.crop_mode", _to_mode)
    yield mode
    yield Fact("crop_offset", "rounded", f"{source}.crop_mode")
    ratio = make_fact("crop_ratio", values["crop_pct"], f"{source}.crop_pct", lambda share: _to_crop_ratio(share, size))
    yield ratio
    if mode.value == "letterbox":
        yield make_fact("padding", values["mean"], f"{source}.mean", _to_colour)
        if ratio.value not in (None, 1):
            problem = f"{source}.crop_mode is 'border' with crop_pct {values['crop_pct']}: expected 1"
            yield Fact("resize", None, f"{source}.crop_mode", problem)
    if mode.value == "crop" and size and size[0] != size[1] and values["interpolation"] != "bilinear":
        problem = f"{source}.interpolation: timm before 1.0.31 is bilinear for {size[0]}x{size[1]}, whatever is stated"
        yield Fact("interpolation", None, f"{source}.interpolation", problem)
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


def _to_colour(value: Any) -> tuple[int, int, int]:
    """Red, green and blue of 0 to 255, of a mean of 0 to 1."""
    numbers = to_numbers(value)
    red, green, blue = (min(255, max(0, round(255 * number))) for number in numbers * (3 // len(numbers)))
    return red, green, blue


def _to_crop_ratio(value: Any, size: tuple[int, int] | None) -> float:
    """The ratio of whole pixels: timm rounds the resized side down."""
    share = to_ratio(value)
    return share if size is None else size[0] / math.floor(size[0] / share)


def _to_interpolation(value: Any) -> str:
    if not isinstance(value, str) or value not in INTERPOLATIONS:
        raise ValueError(f"expected one of {', '.join(INTERPOLATIONS)}")
    return value
