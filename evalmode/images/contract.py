"""The pixel contract: the pixels that a network takes, and every rule by which an image becomes such pixels."""

from __future__ import annotations

from dataclasses import dataclass

from evalmode.errors import UsageError
from evalmode.images.headers import MAX_SIDE
from evalmode.images.resizing import INTERPOLATIONS, MIN_CROP_RATIO, Colour, Size, find_resized_size, plan_letterbox
from evalmode.images.sampling import SAMPLED

MODES = ("crop", "squash", "letterbox", "none")
CROP_OFFSETS = ("rounded", "floored")
CHANNEL_ORDERS = {3: ("RGB", "BGR"), 1: ("grey",)}


def is_colour(value: object) -> bool:
    """Return whether a value is red, green and blue, each 0 to 255."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(type(one) is int and 0 <= one <= 255 for one in value)
    )


def _check_colour(name: str, value: Colour) -> Colour:
    """Return a colour as a tuple.

    Raises:
        UsageError: It is not a colour.
    """
    if not is_colour(value):
        raise UsageError(f"{name} {value!r} is not a colour: expected red, green and blue, each 0 to 255")
    return value[0], value[1], value[2]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} {value!r} is unknown: choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class Resize:
    """How an image of another size is brought to the wanted one.

    Attributes:
        crop_ratio: The cropped side divided by the resized shorter side, at least ``MIN_CROP_RATIO`` and at most 1;
            0.875 is 224 of 256 pixels. Below 1 with the modes crop and squash only.
        interpolation: A name in ``INTERPOLATIONS``; all but nearest are antialiased, unless ``antialias`` is False.
        jpeg_scaling: Whether large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size: the smallest that has at least
            twice the size that the picture is then resized to.
        mode: A name in ``MODES``. crop resizes the shorter side and crops the centre. squash resizes both sides, which
            changes the proportions, and crops the centre if the crop ratio is below 1. letterbox resizes the picture
            to fit and fills the rest. none refuses images of another size.
        antialias: Whether the filter covers all pixels that it reduces. False for bilinear and bicubic only.
        keeps_exact_size: Whether an image of the wanted size is unchanged. False resizes and crops it like any other,
            and a crop with a ratio of 1 resizes the whole picture first, as torchvision and timm do.
        padding: Red, green and blue around a letterboxed picture; its luma if the pixels are grey.
        crop_offset: A name in ``CROP_OFFSETS``: whether the first row and column of a crop are rounded, as by
            torchvision, or rounded down, as by transformers.

    Raises:
        UsageError: A value is unknown or outside its range, or two values do not fit together.
    """

    crop_ratio: float = 1.0
    interpolation: str = "bilinear"
    jpeg_scaling: bool = True
    mode: str = "crop"
    antialias: bool = True
    keeps_exact_size: bool = True
    padding: Colour = (114, 114, 114)
    crop_offset: str = "rounded"

    def __post_init__(self) -> None:
        if not MIN_CROP_RATIO <= self.crop_ratio <= 1:
            raise UsageError(f"crop_ratio {self.crop_ratio} is out of range: at least {MIN_CROP_RATIO}, at most 1")
        _check_choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        _check_choice("mode", self.mode, MODES)
        _check_choice("crop_offset", self.crop_offset, CROP_OFFSETS)
        object.__setattr__(self, "padding", _check_colour("padding", self.padding))  # a list if it was read from JSON
        if self.crop_ratio != 1 and self.mode not in ("crop", "squash"):
            raise UsageError(
                f"crop_ratio {self.crop_ratio} does not fit mode {self.mode!r}, which crops nothing: use 1"
            )
        if not self.antialias and self.interpolation not in SAMPLED:
            raise UsageError(
                f"interpolation {self.interpolation!r} does not fit antialias=False: use {' or '.join(SAMPLED)}"
            )

    def find_target(self, size: Size, crop: Size) -> Size:
        """Return the smallest size that a picture may be resized to, before a crop.

        Args:
            size: The upright size of the picture.
            crop: The wanted size.
        """
        return plan_letterbox(size, crop) if self.mode == "letterbox" else find_resized_size(crop, self.crop_ratio)

    def describe(self) -> str:
        """Describe the resize in words, for people."""
        if self.mode == "none":
            return "none: images of another size are refused"
        filtered = "" if self.interpolation == "nearest" else ", antialiased" if self.antialias else ", not antialiased"
        library = "Pillow, " if self.antialias else ""
        scaled = "; large JPEGs decoded at 1/2, 1/4 or 1/8" if self.jpeg_scaling else ""
        exact = "" if self.keeps_exact_size else "; images of the exact size, too"
        return f"{self._describe_sizes()} ({library}{self.interpolation}{filtered}){scaled}{exact}"

    def _describe_sizes(self) -> str:
        if self.mode == "letterbox":
            return f"resized to fit, centred, the rest filled with RGB {self.padding}"
        length = "" if self.crop_ratio == 1 else f" to 1/{self.crop_ratio:g} of the crop"
        floored = "" if self.crop_offset == "rounded" else " at an offset rounded down"
        if self.mode == "squash":
            return f"both sides resized{length}" + (f", centre cropped{floored}" if length else "")
        return f"shorter side resized{length}, centre cropped{floored}"


@dataclass(frozen=True)
class PixelContract:
    """The pixels that a network takes: uint8 (height, width, channels), and how images become such pixels.

    Attributes:
        height: Rows, 1 to ``MAX_SIDE``.
        width: Columns, 1 to ``MAX_SIDE``.
        channels: 3 (colours) or 1 (grey).
        resize: How an image of another size is brought to this one.
        channel_order: RGB or BGR, with 3 channels; always grey with 1.
        exif_orientation: Whether the EXIF orientation is applied.
        background: Red, green and blue under transparent pixels; None ignores the transparency, as ``convert`` of
            Pillow does.

    Raises:
        UsageError: A side, the number of channels, their order or the background is not one of these.
    """

    height: int
    width: int
    channels: int
    resize: Resize = Resize()
    channel_order: str = "RGB"
    exif_orientation: bool = True
    background: Colour | None = (255, 255, 255)

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if not (isinstance(side, int) and 1 <= side <= MAX_SIDE):
                raise UsageError(f"{name} {side!r} is not a number of pixels: expected 1 to {MAX_SIDE:,}")
        if self.channels not in CHANNEL_ORDERS:
            raise UsageError(f"channels {self.channels!r}: expected 3 (colours) or 1 (grey)")
        if self.channels == 1:
            object.__setattr__(self, "channel_order", "grey")
        else:
            _check_choice("channel_order", self.channel_order, CHANNEL_ORDERS[3])
        if self.background is not None:
            object.__setattr__(self, "background", _check_colour("background", self.background))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels

    @property
    def size(self) -> Size:
        """(width, height), as Pillow has it."""
        return self.width, self.height

    def describe(self) -> str:
        """Describe the resize, and the rules that are not the usual ones, in words, for people."""
        rules = [self.resize.describe()]
        if self.channel_order == "BGR":
            rules.append("channels in the order BGR")
        if not self.exif_orientation:
            rules.append("EXIF orientation not applied")
        if self.background is None:
            rules.append("transparency ignored")
        elif self.background != PixelContract.background:
            rules.append(f"transparent pixels over RGB {self.background}")
        return "; ".join(rules)
