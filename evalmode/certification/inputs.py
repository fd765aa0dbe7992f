"""What another tool's network takes and returns, as far as its graph tells: its images, and its scores of labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from evalmode.certification.onnx_files import describe, name_type
from evalmode.errors import UsageError
from evalmode.images.pixels import PixelContract

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
IN_PYTHON = "(in Python: contract=PixelContract(...))"
IMAGE_TYPES = (*FLOATS, TensorProto.UINT8)  # element types that pixels can be cast to


@dataclass(frozen=True)
class ImageInput:
    """The input of a network that takes images.

    Attributes:
        name: The name in the graph.
        contract: Height, width and channels.
        layout: "NCHW", "NHWC" or "flat" (N, H * W * C).
    """

    name: str
    contract: PixelContract
    layout: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a batch of one image."""
        height, width, channels = self.contract.shape
        return {"NCHW": (1, channels, height, width), "NHWC": (1, height, width, channels)}.get(
            self.layout, (1, height * width * channels)
        )


Runs = Callable[[ImageInput], bool]


def read_input(graph: onnx.ModelProto, size: tuple[int, ...], runs: Runs) -> ImageInput:
    """Find out which images a network takes.

    Args:
        graph: A network with one input.
        size: (height, width) or (height, width, channels) for what the graph leaves open; () if it leaves nothing open.
        runs: Whether the network runs on one image, called where the graph leaves the channels open.

    Returns:
        The input.

    Raises:
        UsageError: The network takes something else, or the shape of its images is unknown.
    """
    takes = "the network takes " + ("; ".join(map(describe, graph.graph.input)) or "nothing")
    value = _read_only_input(graph, takes)
    kind = value.type.tensor_type
    sides = [dim.dim_value for dim in kind.shape.dim][1:] if kind.HasField("shape") else [0, 0, 0]
    if len(sides) == 1:
        return ImageInput(value.name, _read_rows(sides[0], size, takes), "flat")
    if len(sides) != 3:
        raise UsageError(f"{takes}: expected 4 dimensions (a batch of images) or 2")
    candidates = _list_candidates(value.name, sides, size, takes)
    if len(candidates) > 1:  # the graph leaves layout or channels open
        candidates = [one for one in candidates if runs(one)]
    if len({one.contract for one in candidates}) != 1:  # of two layouts the first: accuracy shows if it is wrong
        these = " and ".join(f"{one.layout} with {one.contract.channels} channels" for one in candidates)
        raise UsageError(
            f"{takes}: this does not say how many channels images have. "
            + (
                f"It runs on {these}: choose with --size HxWxC {IN_PYTHON}"
                if these
                else "It does not run on images of "
                f"{'x'.join(map(str, _find_size(sides, size, takes)))} with 1 or 3 channels: check --size"
            )
        )
    return candidates[0]


def _read_only_input(graph: onnx.ModelProto, takes: str) -> onnx.ValueInfoProto:
    """The one input of a network, if images can be cast to it."""
    if len(graph.graph.input) != 1:
        raise UsageError(f"{takes}: expected one input of images; other networks are certified with --samples")
    value = graph.graph.input[0]
    if value.type.tensor_type.elem_type not in IMAGE_TYPES:
        expected = ", ".join(map(name_type, IMAGE_TYPES))
        raise UsageError(f"{takes}: expected images of {expected}; other networks: --samples")
    return value


def _read_rows(length: int, size: tuple[int, ...], takes: str) -> PixelContract:
    """The images of a network that takes each as one row of values; a length of 0 is any."""
    if not size or (length and length % (size[0] * size[1])):
        raise UsageError(
            f"{takes}, rows of {length or 'any number of'} values: give the size of the images with --size HxW "
            f"{IN_PYTHON}"
        )
    channels = size[2] if len(size) == 3 else max(1, length // (size[0] * size[1]))
    _check_channels(channels, takes)
    return PixelContract(size[0], size[1], channels)


def _list_candidates(name: str, sides: list[int], size: tuple[int, ...], takes: str) -> list[ImageInput]:
    """Every layout and number of channels that the graph and the user's size allow."""
    found = [(layout, channels) for layout, (*_, channels) in _list_layouts(sides) if _fits(channels, size)]
    if not found:
        outer = sides[2] if sides[0] > sides[2] > 0 else sides[0]
        _check_channels(outer, takes)
        raise UsageError(f"{takes}, --size says {size[2] if size else 0} channels")
    height, width = _find_size(sides, size, takes)
    return [
        ImageInput(name, PixelContract(height, width, depth), layout)
        for layout, channels in found
        for depth in ((channels,) if channels else size[2:] or (3, 1))
    ]


def _find_size(sides: list[int], size: tuple[int, ...], takes: str) -> tuple[int, int]:
    """Height and width: the graph's, or the user's where it leaves them open."""
    height, width = next(
        (height, width) for _, (height, width, channels) in _list_layouts(sides) if _fits(channels, size)
    )
    if not size:
        if not (height and width):
            raise UsageError(f"{takes}, images of any size: choose one with --size HxW {IN_PYTHON}")
        return height, width
    if (height or size[0], width or size[1]) != size[:2]:
        raise UsageError(f"the network takes images of {height}x{width}, --size says {size[0]}x{size[1]}")
    return size[0], size[1]


def _list_layouts(sides: list[int]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """The layouts that three axes may have, with (height, width, channels); 0 is any."""
    first, middle, last = sides
    sure = first in (1, 3) or last in (1, 3)
    if first in (1, 3) or (not first and not sure):
        yield "NCHW", (middle, last, first)
    if (last in (1, 3) and first not in (1, 3)) or (not last and not sure):
        yield "NHWC", (first, middle, last)


def _fits(channels: int, size: tuple[int, ...]) -> bool:
    return not channels or len(size) < 3 or size[2] == channels


def _check_channels(channels: int, takes: str) -> None:
    if channels not in (1, 3):
        raise UsageError(f"{takes}, {channels} channels: expected 1 (grey) or 3 (colour)")
