"""Hugging Face's ``config.json`` and ``preprocessor_config.json``, as transformers writes them.

Source: https://github.com/huggingface/transformers, src/transformers/models/*/image_processing_*.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalmode.certification.found.facts import Fact, make_fact
from evalmode.certification.found.labels import make_labels
from evalmode.certification.found.place import Place
from evalmode.certification.found.values import read_json, to_flag, to_numbers, to_side, to_spread
from evalmode.errors import UsageError

Rectangle = tuple[int, int]  # height, width

RESAMPLES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
# Image processors that resize, crop, rescale and normalise in this order, by the start of their name. The first resize
# the shorter side to a size of one number, the second the whole image.
SHORTER_SIDE: tuple[str, ...] = ("CLIP", "Bit", "ChineseCLIP", "MobileNetV1", "MobileNetV2", "MobileViT", "ConvNext")
SHORTER_SIDE += ("ViTHybrid", "Levit", "PoolFormer")
WHOLE_IMAGE = ("ViT", "DeiT", "Beit", "EfficientNet", "EfficientFormer", "Siglip", "Swin2SR", "Pvt", "Segformer", "")
CROPS = {*SHORTER_SIDE, "DeiT", "EfficientFormer"} - {"ConvNext"}  # unless do_center_crop says
CROP_SHARES = {"ConvNext": 224 / 256, "PoolFormer": 0.9}  # the defaults of crop_pct
LEVIT_SHARE = 256 / 224  # of the side that is resized
CONVNEXT_SQUASHES = 384  # from this size on ConvNext does not crop
ROUNDS = "ConvNextImageProcessorFast"  # of transformers 4, which crops by torchvision; all others round offsets down
KNOWN = ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_flip_channel_order")
HARMLESS = ("do_convert_rgb", "do_reduce_labels")  # colours are RGB anyway; the other is about segmentations


def read_hugging_face(place: Place) -> Iterator[Fact]:
    """Read the configuration files of Hugging Face in a folder.

    Raises:
        UsageError: A file is damaged, or the network has several labels an image.
    """
    path = place.folder / "config.json"
    config = read_json(path)
    if config is not None:
        if config.get("problem_type") == "multi_label_classification":
            raise UsageError(f"{path}: problem_type is multi_label_classification: evalmode serves one label an image")
        names = config.get("id2label")
        if names is not None and not _are_placeholders(names):
            yield make_labels(names, f"{path}: id2label")
    path = place.folder / "processor_config.json"  # of images and texts; transformers prefers it, too
    config = (read_json(path) or {}).get("image_processor")
    if not isinstance(config, dict):
        path = place.folder / "preprocessor_config.json"
        config = read_json(path)
    if isinstance(config, dict) and "pretrained_cfg" not in config:  # that of timm, which config.json states, too
        yield from _read_processor(path, config)


def _are_placeholders(names: Any) -> bool:
    """Whether the names are those that transformers writes where there are none."""
    return isinstance(names, dict) and all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names.values())


def _read_processor(path: Path, config: Mapping[str, Any]) -> Iterator[Fact]:
    """The facts of an image processor's configuration."""
    named = config.get("image_processor_type", config.get("feature_extractor_type", ""))
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", named) if isinstance(named, str) else "?"
    flags = _read_flags(path, config, kind)
    yield from _read_arithmetic(path, config, flags)
    if flags["do_flip_channel_order"]:
        yield Fact("bgr", True, f"{path}: do_flip_channel_order")
    unknown = [name for name in flags if name.startswith("do_") and flags[name] and name not in KNOWN + HARMLESS]
    if kind not in SHORTER_SIDE + WHOLE_IMAGE:
        problem = f"{path}: how image processor {named!r} resizes is unknown"
        yield Fact("resize", None, f"{path}: image_processor_type", problem)
    elif unknown:
        yield Fact("resize", None, f"{path}: {unknown[0]}", f"{path}: {unknown[0]} is not supported")
    else:
        for fact in _read_resize(path, config, kind, flags):
            yield replace(fact, value="rounded") if named == ROUNDS and fact.name == "crop_offset" else fact


def _read_flags(path: Path, config: Mapping[str, Any], kind: str) -> dict[str, bool]:
    """The values of true or false by name; where none is stated, the default of the kind."""
    flags = {"do_resize": True, "do_rescale": True, "do_normalize": kind != "MobileViT"}
    flags |= {"do_center_crop": kind in CROPS, "do_flip_channel_order": kind == "MobileViT", "rescale_offset": False}
    flags |= {"include_top": kind == "EfficientNet"}
    for name in (*flags, *(name for name in config if name.startswith("do_") and name not in flags)):
        if config.get(name) is not None:
            try:
                flags[name] = to_flag(config[name])
            except ValueError as error:
                raise UsageError(f"{path}: {name} is {repr(config[name])[:80]}: {error}; correct it") from error
    return flags


def _read_arithmetic(path: Path, config: Mapping[str, Any], flags: Mapping[str, bool]) -> Iterator[Fact]:
    """Scale, mean and standard deviation."""
    if not flags["do_rescale"]:
        yield Fact("scale", (0.0, 255.0), f"{path}: do_rescale")
    else:
        factor = config.get("rescale_factor", 1 / 255)
        low = 127.5 if flags["rescale_offset"] else 0.0
        yield make_fact("scale", factor, f"{path}: rescale_factor", lambda value: _to_scale(value, low))
    if not flags["do_normalize"]:
        yield Fact("mean", (0.0,), f"{path}: do_normalize")
        yield Fact("std", (1.0,), f"{path}: do_normalize")
        return
    yield make_fact("mean", config.get("image_mean"), f"{path}: image_mean", to_numbers)
    spread = make_fact("std", config.get("image_std"), f"{path}: image_std", to_spread)
    if flags["include_top"] and spread.value:  # EfficientNet divides by it twice
        spread = Fact("std", tuple(one**2 for one in spread.value), f"{path}: image_std and include_top")
    yield spread


def _to_scale(value: Any, low: float) -> tuple[float, float]:
    """What pixels 0 and 255 become: (pixel - low) * factor, without the last bits of 1/255."""
    numbers = to_numbers(value)
    if len(numbers) != 1 or numbers[0] <= 0:
        raise ValueError("expected one number above 0")
    return round(-low * numbers[0], 12) + 0.0, round((255 - low) * numbers[0], 12)


def _read_resize(path: Path, config: Mapping[str, Any], kind: str, flags: Mapping[str, bool]) -> Iterator[Fact]:
    """Size, mode of the resize, crop ratio and interpolation."""
    source = f"{path}: size"
    if not flags["do_resize"]:
        yield Fact("resize", "none", f"{path}: do_resize")
        if flags["do_center_crop"]:
            yield Fact("resize", None, source, f"{path}: a crop without a resize is not supported")
        return
    yield make_fact("interpolation", config.get("resample"), f"{path}: resample", _to_interpolation)
    try:
        side, rectangle = _read_size(config.get("size"), kind)
        resized = _enlarge(config, kind, side)
    except ValueError as error:
        yield Fact("size", None, source, f"{source} is {repr(config.get('size'))[:80]}: {error}")
        return
    if kind == "ConvNext" and side:
        squashes = side >= CONVNEXT_SQUASHES
        yield from _state(path, (side, side), (side, side) if squashes else (resized, resized), not squashes)
    elif flags["do_center_crop"]:
        crop = make_fact("size", config.get("crop_size"), f"{path}: crop_size", _to_rectangle)
        if crop.problem:
            yield crop
        else:
            yield from _state(path, crop.value, (resized, resized) if side else rectangle, bool(side))
    elif side:
        problem = f"{path}: images of any length, size {resized} without a crop, are not supported"
        yield Fact("resize", None, source, problem)
    else:
        yield from _state(path, rectangle, rectangle, False)


def _state(path: Path, size: Rectangle, resized: Rectangle, is_shorter: bool) -> Iterator[Fact]:
    """The facts of a resize with a crop, whose offset is rounded down.

    Args:
        path: The configuration.
        size: (height, width) after the crop.
        resized: (height, width) before it; of the shorter side, twice.
        is_shorter: Whether the shorter side is resized, not the whole image.
    """
    (height, width), source = size, f"{path}: size"
    yield Fact("size", size, source)
    yield Fact("resize", "crop" if is_shorter else "squash", source)
    if height > resized[0] or width > resized[1]:
        yield Fact("crop_ratio", None, source, f"{path}: crop_size {height}x{width} is larger than size")
    elif height * resized[1] != width * resized[0]:
        shape = "a shorter side" if is_shorter else f"{resized[0]}x{resized[1]}"
        yield Fact("crop_ratio", None, source, f"{path}: a crop of {height}x{width} of {shape} is not supported")
    else:
        yield Fact("crop_ratio", height / resized[0], f"{path}: size and crop")
        if is_shorter or size != resized:
            yield Fact("crop_offset", "floored", f"{path}: image_processor_type")


def _enlarge(config: Mapping[str, Any], kind: str, side: int) -> int:
    """The length that the shorter side is resized to, where the size is that of the crop."""
    if kind == "Levit":
        return int(LEVIT_SHARE * side)
    share = config.get("crop_pct")
    if kind not in CROP_SHARES:
        return side
    (number, *others) = to_numbers(CROP_SHARES[kind] if share is None else share)
    if others or not 0 < number <= 1:
        raise ValueError(f"crop_pct is {share!r}: expected a number above 0 and at most 1")
    return math.floor(side / number)


def _read_size(value: Any, kind: str) -> tuple[int, Rectangle]:
    """The length of the shorter side, or 0 and (height, width)."""
    if isinstance(value, dict) and set(value) == {"shortest_edge"}:
        return to_side(value["shortest_edge"]), (0, 0)
    if isinstance(value, int) and not kind:
        raise ValueError("without image_processor_type, expected height and width, or the shortest edge")
    if isinstance(value, int) and kind in SHORTER_SIDE:
        return to_side(value), (0, 0)
    if kind in CROP_SHARES:
        raise ValueError("expected the shortest edge")
    return 0, _to_rectangle(value)


def _to_rectangle(value: Any) -> Rectangle:
    """(height, width) of {"height", "width"}, or of one side."""
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        return to_side(value["height"]), to_side(value["width"])
    if isinstance(value, int):
        return to_side(value), to_side(value)
    raise ValueError("expected height and width, or the shortest edge")


def _to_interpolation(value: Any) -> str:
    if type(value) is not int or value not in RESAMPLES:
        raise ValueError("expected a number of Pillow's resampling filters, 0 to 5")
    return RESAMPLES[value]
