"""The preprocessing of another tool's image classifier, and the options to certify it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Real
from os import PathLike

from evalmode.certification.wrap import Transform
from evalmode.errors import UsageError
from evalmode.images.contract import PixelContract
from evalmode.limits import Limits


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing that a network expects of a pixel x: ``(x / 255 * (high - low) + low - mean) / std``.

    Example:
        ImageNet's, as in torchvision:
        ``Preprocessing((0, 1), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))``

    Attributes:
        scale: (low, high): maps pixels 0 and 255 to these values, before ``mean`` and ``std``.
        mean: Subtracts a mean after scaling: one value, or one for each channel in the order that the network expects.
        std: Divides by a standard deviation after that, above 0: one value, or one for each channel.
        bgr: Whether the network expects the channels in the order blue, green, red.

    Raises:
        UsageError: ``scale`` is not a range, a ``std`` is not above 0, or a value is not a sequence of numbers.
    """

    scale: tuple[float, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    def __post_init__(self) -> None:
        for name in ("scale", "mean", "std"):
            object.__setattr__(self, name, _read_numbers(name, getattr(self, name)))
        if len(self.scale) != 2 or self.scale[0] >= self.scale[1]:
            raise UsageError(f"--scale {_show(self.scale)} is not LOW,HIGH such as -1,1")
        if min(self.std) <= 0:
            raise UsageError(f"--std {_show(self.std)}: expected numbers above 0")

    def to_transform(self, contract: PixelContract, takes_bytes: bool) -> Transform:
        """Compute the scale and shift of each channel.

        Args:
            contract: The pixels that the network takes.
            takes_bytes: Whether the network takes uint8.

        Returns:
            A scale and shift for all channels, or for each.

        Raises:
            UsageError: The preprocessing does not fit the network.
        """
        channels = contract.channels
        for option, values in (("--mean", self.mean), ("--std", self.std)):
            if len(values) not in (1, channels):
                expected = "1" if channels == 1 else f"1 or {channels}"
                raise UsageError(f"{option} has {len(values)} numbers: expected {expected}")
        if self.bgr and channels == 1:
            raise UsageError("--bgr: the network takes grey images, which have only one channel")
        if self.bgr and contract.channel_order == "BGR":
            raise UsageError("bgr: the pixel contract states BGR already, so the channels would be in the order RGB")
        if takes_bytes and (self.scale, self.mean, self.std) != ((0.0, 255.0), (0.0,), (1.0,)):
            raise UsageError("the network takes uint8, pixels as they are: --scale 0,255 without --mean and --std")
        (low, high), width = self.scale, max(len(self.mean), len(self.std))
        means, stds = (values * (width // len(values)) for values in (self.mean, self.std))
        return Transform(
            self.bgr,
            scale=tuple((high - low) / 255 / std for std in stds),
            shift=tuple((low - mean) / std for mean, std in zip(means, stds, strict=True)),
        )


@dataclass(frozen=True)
class ClassifierOptions:
    """Options to certify an image classifier.

    Attributes:
        output: The name of the output with a value for each label; may be "" if there is only one such output.
        synthetic_golden: Draws synthetic golden images, so that the artifact contains none of the user's images.
        allow_guessing: Certifies a network even if it is no better than guessing.
        limits: Limits the size of the images that are read.
        reference: An ``.npz`` file of the answers that the network's own library gave for the images: ``names``,
            such as ``cats/1.jpg``, and ``probabilities`` or ``logits``.
    """

    output: str = ""
    synthetic_golden: bool = False
    allow_guessing: bool = False
    limits: Limits = field(default_factory=Limits)
    reference: str | PathLike[str] | None = None


def _read_numbers(name: str, values: Iterable[object]) -> tuple[float, ...]:
    """Convert a sequence of numbers to a tuple of floats, and refuse everything else."""
    expected = "(low, high)" if name == "scale" else "one number for all channels, such as (0.5,), or one for each"
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UsageError(f"{name} is {values!r}: expected a tuple: {expected}")
    values = tuple(values)
    numbers = tuple(float(one) if isinstance(one, Real) else math.nan for one in values)
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UsageError(f"{name} is {values!r}: expected finite numbers: {expected}")
    return numbers


def _show(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{one:g}" for one in numbers)
