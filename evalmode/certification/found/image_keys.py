"""ONNX's own metadata of images: the keys ``Image.*``, whose letters may be of any case.

Source: https://github.com/onnx/onnx/blob/main/docs/MetadataProps.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from evalmode.certification.found.facts import Fact

FORMATS = {"gray8": (1, False), "rgb8": (3, False), "bgr8": (3, True)}  # channels, and whether in the order BGR
RANGES = {
    "nominalrange_0_255": (0.0, 255.0),
    "normalized_0_1": (0.0, 1.0),
    "normalized_1_1": (-1.0, 1.0),
    "nominalrange_16_235": (16.0, 235.0),
}


def read_image_keys(keys: Mapping[str, str]) -> Iterator[Fact]:
    """Read the keys ``Image.*`` of an ONNX file.

    Args:
        keys: The metadata by key.
    """
    for key, text in keys.items():
        value, source = text.strip().lower(), f"metadata '{key}' of the file"
        unknown = f"{source} is {text[:40]!r}: it is not supported"
        match key.lower():
            case "image.bitmappixelformat" if value in FORMATS:
                channels, bgr = FORMATS[value]
                yield Fact("channels", channels, source)
                if channels == 3:
                    yield Fact("bgr", bgr, source)
            case "image.bitmappixelformat":
                yield Fact("channels", None, source, unknown)
            case "image.nominalpixelrange" if value in RANGES:
                yield Fact("scale", RANGES[value], source)
            case "image.nominalpixelrange":
                yield Fact("scale", None, source, unknown)
            case "image.colorspacegamma" if value != "srgb":
                yield Fact("scale", None, source, f"{unknown}, images are decoded as sRGB")
