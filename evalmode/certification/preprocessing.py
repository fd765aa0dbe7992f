"""What a user states about another tool's image classifier."""

from __future__ import annotations

from dataclasses import dataclass, field

from evalmode.certification.wrap import Transform
from evalmode.errors import UsageError
from evalmode.limits import Limits


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects to be done to a pixel x: ``(x / 255 * (high - low) + low - mean) / std``.

    Example:
        ImageNet's, as torchvision has it:
        ``Preprocessing((0, 1), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))``

    Attributes:
        scale: (low, high), the values that 0 and 255 become.
        mean: Subtracted then: one value, or one for each channel in the order that the network expects.
        std: Divided by then, likewise; above 0.
        bgr: Whether the network expects the channels in the order blue, green, red.

    Raises:
        UsageError: ``scale`` is not a range, or a ``std`` is not above 0.
    """

    scale: tuple[float, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    def __post_init__(self) -> None:
        for name in ("scale", "mean", "std"):  # a list is as good as a tuple
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.scale) != 2 or self.scale[0] >= self.scale[1]:
            raise UsageError(f"--scale {_show(self.scale)} is not LOW,HIGH such as -1,1")
        if min(self.std) <= 0:
            raise UsageError(f"--std {_show(self.std)}: expected numbers above 0")

    def to_transform(self, channels: int, takes_bytes: bool) -> Transform:
        """The scale and shift of each channel.

        Args:
            channels: The number of channels of the network's images, 1 or 3.
            takes_bytes: Whether the network takes uint8.

        Returns:
            What is done to pixels.

        Raises:
            UsageError: The preprocessing does not fit the network.
        """
        for option, values in (("--mean", self.mean), ("--std", self.std)):
            if len(values) not in (1, channels):
                expected = "1" if channels == 1 else f"1 or {channels}"
                raise UsageError(f"{option} has {len(values)} numbers: expected {expected}")
        if self.bgr and channels == 1:
            raise UsageError("--bgr: the network takes grey images, which have only one channel")
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
    """How an image classifier is certified.

    Attributes:
        size: (height, width) or (height, width, channels) of the images where the network leaves them open, else ().
        output: The name of the output with a value for each label if there are several such outputs, else "".
        synthetic_golden: Whether golden images are synthetic, so that none of the user's images is in the artifact.
        allow_guessing: Whether a network is certified that is no better than guessing.
        limits: The largest image that is read.
    """

    size: tuple[int, ...] = ()
    output: str = ""
    synthetic_golden: bool = False
    allow_guessing: bool = False
    limits: Limits = field(default_factory=Limits)


def _show(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{one:g}" for one in numbers)
