"""The options of training, export and report.

The command line and the Python API use the same dataclasses: a field gives the flag, its range, its default and its
help text. This module imports no other library, so that ``--help`` works in the bare install.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from evalmode.deployment.targets import ALSO, AUTHOR, LICENSE, check_credits, check_kinds
from evalmode.errors import UsageError
from evalmode.limits import OWN_IMAGES, Limits
from evalmode.options import convert_fields, option

AUTO = "auto"
BY_NETWORK = "the network's own"  # shown as the default of the values that a recipe decides
MAX_SIDE = 99_999  # pixels
DATA = {"what": "present place of the data of the run, if they were moved"}
WEIGHTS = {"what": "file of pretrained weights (.pth, .safetensors); without it, the network's own", "path": "file"}
CACHE = {
    "what": "folder for published data sets, as CACHE/NAME/<files>; missing files are downloaded into it",
    "shown": "the user's cache folder for evalmode",
    "path": "folder",
}


def _image_limit(name: str) -> Any:
    """Define an option with the range and the help text of a limit."""
    limit = next(one for one in fields(Limits) if one.name == name).metadata
    what = f"{limit['what']}; a larger one is an error"
    return option(getattr(OWN_IMAGES, name), what, minimum=limit["minimum"], maximum=limit["maximum"])


def _is_size(value: Any) -> bool:
    """Check that a value is (height, width) in pixels."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return all(type(side) is int and 0 < side <= MAX_SIDE for side in value)


@dataclass(frozen=True)
class TrainOptions:
    """The options of a training.

    A value of None in a field that the recipe of the network decides means the value of that recipe.

    Attributes:
        network: ``auto`` for a pretrained network for photos and a new one for small images; ``compact``,
            ``reference``, ``efficientnet-lite0``, ``-lite1`` or ``-lite2``; ``timm:NAME``; or a function of the user as
            ``package.module:function``.
        weights: File of pretrained weights of the network; None for its own.
        fine_tune: Which stages of a pretrained network are trained after its head: ``auto`` for those with at most
            three quarters of the computation, ``none``, or the number of the last stages.
        minutes: Time that the training may take, in minutes; views and epochs are planned for it. None for no limit.
        compare: With ``auto``, train ``efficientnet-lite0`` and ``compact``, and keep the one that validates better.
        width: Factor of the number of filters, from 0.125 to 16.
        image_size: (height, width) in pixels to resize every image to; None for the size of the network, or else that
            of the images.
        labels: Table of the files of a folder and their labels; None if the labels are the names of folders.
        epochs: Passes over the training images, at least 1.
        batch_size: Images in a training step, at least 2.
        learning_rate: Peak learning rate, above 0.
        weight_decay: Decoupled weight decay, at least 0.
        dropout: Share of units dropped in training, from 0 to below 1.
        label_smoothing: Share of the target probability that is spread over all labels, from 0 to below 1.
        mirror: Whether to train on mirrored images, too.
        shift: Largest shift of an image in pixels, at least 0.
        balance: Whether to weight the loss so that rare labels count as much as frequent ones.
        skip_unreadable: Whether to leave out unreadable files, instead of raising an error.
        on_nonfinite: ``stop`` at a loss or gradient that is NaN or infinite, or ``backoff`` to half the learning rate.
        resume: Whether to continue the run in the folder after its last complete epoch.
        seed: Seed of every random draw, from 0 to 2**32 - 1.
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA if torch can use it.
        report: Whether to write ``report.html``.
        max_image_bytes: Largest encoded image in bytes.
        max_image_pixels: Largest decoded image in pixels.
        cache: Folder for published data sets; None for the cache folder of the user.

    Raises:
        UsageError: A value is unknown, has another type, or is outside its range.
    """

    network: str = option(
        AUTO,
        "auto (photos: efficientnet-lite0, small images: compact), compact, reference, efficientnet-lite0, -lite1 or "
        "-lite2, timm:NAME, or your own as package.module:function",
    )
    weights: Path | None = field(default=None, metadata=WEIGHTS)
    fine_tune: str = option(
        AUTO, "stages of a pretrained network to train after its head: auto, none, or the number of the last stages"
    )
    minutes: float | None = option(
        None, "time for the whole training in minutes; views and epochs are planned for it", above=0, maximum=100_000
    )
    compare: bool = option(
        False, "with --network auto: train efficientnet-lite0 and compact, and keep the one that validates better"
    )
    width: float = option(1.0, "factor of the number of filters", minimum=0.125, maximum=16)
    image_size: tuple[int, int] | None = option(
        None, "resize every image to this size; without it, the network or else the images decide"
    )
    labels: Path | None = option(
        None, "CSV with columns file and label, optionally split; without it, labels are names of folders", path="file"
    )
    epochs: int | None = option(None, "passes over the training images", minimum=1, shown=BY_NETWORK)
    batch_size: int | None = option(None, "images in a training step", minimum=2, shown=BY_NETWORK)
    learning_rate: float | None = option(None, "peak learning rate", above=0, maximum=1e30, shown=BY_NETWORK)
    weight_decay: float | None = option(None, "decoupled weight decay", minimum=0, shown=BY_NETWORK)
    dropout: float | None = option(None, "share of units dropped", minimum=0, below=1, shown=BY_NETWORK)
    label_smoothing: float | None = option(
        None, "share of the target spread over all labels", minimum=0, below=1, shown=BY_NETWORK
    )
    mirror: bool | None = option(
        None,
        "train on mirrored images, too; not for labels that differ only by left and right",
        shown=f"{BY_NETWORK}, never for characters",
    )
    shift: int | None = option(None, "largest shift of an image in pixels", minimum=0, shown=BY_NETWORK)
    balance: bool = option(False, "weight the loss so that rare labels count as much as frequent ones")
    skip_unreadable: bool = option(False, "leave out files that cannot be read; without it, they are an error")
    on_nonfinite: Literal["stop", "backoff"] = option(
        "stop", "if a loss or gradient is NaN or infinite: stop, or halve the learning rate, at most three times"
    )
    resume: bool = option(False, "continue the run in --out after its last complete epoch")
    seed: int = option(0, "seed of every random draw", minimum=0, maximum=2**32 - 1)
    device: Literal["cpu", "cuda", "auto"] = option("auto", "device to train on")
    report: bool = option(True, "write report.html at the end")
    max_image_bytes: int = _image_limit("max_image_bytes")
    max_image_pixels: int = _image_limit("max_image_pixels")
    cache: Path | None = field(default=None, metadata=CACHE)

    def __post_init__(self) -> None:
        size: Any = self.image_size
        if size is not None and not _is_size(size):
            raise UsageError(f"image_size {size!r} is not (height, width) in pixels, each from 1 to {MAX_SIDE}")
        convert_fields(self)
        if self.fine_tune not in (AUTO, "none") and not re.fullmatch("[1-9][0-9]{0,3}", self.fine_tune):
            raise UsageError(f"fine_tune {self.fine_tune!r} is not auto, none or a number of stages from 1")
        if self.compare and self.network != AUTO:
            raise UsageError(f"compare is for the network auto, not for {self.network}: leave one of them out")

    @property
    def limits(self) -> Limits:
        """The limits on the size of an image of the data."""
        return Limits(self.max_image_bytes, self.max_image_pixels)


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export.

    Attributes:
        mirrored: Whether to answer with the mean over an image and its mirror image.
        golden: The images kept in the file as proof: of the validation split, or ``synthetic`` ones for private data.
        quantize: ``int8`` to publish a quantized variant, too, if it is faster and as accurate; None for no variant.
        author: Who made the model; stated in the file. None for no statement.
        license: Name of the licence of the model, such as its SPDX identifier; stated in the file.
        also: Layouts of other tools to write, too, as ``KIND`` or ``KIND=DIR``: ``triton``, ``kserve``, ``ovms`` or
            ``huggingface``. Without ``DIR`` the folder is beside the repository: ``models-triton``.
        data: Present place of the data of the run, if they were moved; None if they were not.
        cache: Folder for published data sets; None for the cache folder of the user.

    Raises:
        UsageError: A value is unknown, or has another type.
    """

    mirrored: bool = option(False, "answer with the mean over the image and its mirror image: twice the cost")
    golden: Literal["validation", "synthetic"] = option(
        "validation", "images kept in the file as its proof: validation images, or synthetic ones for private data"
    )
    quantize: Literal["int8"] | None = option(None, "also publish NAME-int8, if it is faster and as accurate")
    author: str | None = field(default=None, metadata=AUTHOR)
    license: str | None = field(default=None, metadata=LICENSE)
    also: tuple[str, ...] = field(default=(), metadata=ALSO)
    data: str | None = field(default=None, metadata=DATA)
    cache: Path | None = field(default=None, metadata=CACHE)

    def __post_init__(self) -> None:
        convert_fields(self)
        check_credits(self.author, self.license)
        check_kinds(self.also)


@dataclass(frozen=True)
class ReportOptions:
    """The options of a report.

    Attributes:
        data: Present place of the data of the run, if they were moved; None if they were not.
        cache: Folder for published data sets; None for the cache folder of the user.

    Raises:
        UsageError: A value has another type.
    """

    data: str | None = field(default=None, metadata=DATA)
    cache: Path | None = field(default=None, metadata=CACHE)

    def __post_init__(self) -> None:
        convert_fields(self)
