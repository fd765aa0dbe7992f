"""A network with the facts that were chosen for it: from its files, and from the user.

Shapes: N images, H height, W width, C channels, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from evalmode.artifact.tensors import Floats
from evalmode.certification.adapt import drop_inputs, remove_maps
from evalmode.certification.found.facts import (
    NO_BACKGROUND,
    OPTIONS,
    RESIZE,
    STATED,
    Fact,
    choose_facts,
    list_pixel_facts,
    list_replaced,
    show_value,
)
from evalmode.certification.found.own import read_own_contract
from evalmode.certification.found.place import find_place
from evalmode.certification.found.read import read_facts
from evalmode.certification.graph import check_eval_mode
from evalmode.certification.onnx_files import read_network
from evalmode.certification.preprocessing import Preprocessing
from evalmode.errors import UsageError
from evalmode.images.contract import PixelContract, Resize
from evalmode.images.pixels import Pixels
from evalmode.images.sampling import SAMPLED

REQUIRED = ("labels", "scale")
CREDITS = {  # keys of ONNX and of Ultralytics
    "model_author": "--author",
    "author": "--author",
    "model_license": "--license",
    "license": "--license",
}


@dataclass(frozen=True, eq=False)
class Library:
    """A network in its own library.

    Attributes:
        name: The name and the version of the library.
        run: Runs the network: uint8 (N, H, W, C) of the pixel contract to logits or probabilities, float32 (N, K).
    """

    name: str
    run: Callable[[Pixels], Floats]


@dataclass(frozen=True, eq=False)
class FoundNetwork:
    """A network and the facts about it.

    Attributes:
        name: What messages call it: the path of its file, or the class of a torch module.
        graph: The network.
        facts: The chosen facts by name.
        notes: What was changed in the network, and what the user replaced, a sentence each.
        contract: The pixel contract that the user states, or that of an artifact; None if the facts make one.
        library: The network in its own library; None for a file.
    """

    name: str
    graph: onnx.ModelProto
    facts: Mapping[str, Fact]
    notes: tuple[str, ...] = ()
    contract: PixelContract | None = None
    library: Library | None = None

    def list_missing(self) -> list[str]:
        """The names of the facts that no source states and that certification requires."""
        return [name for name in REQUIRED if name not in self.facts] + ["size"] * self._lacks_size()

    @property
    def states_resize(self) -> bool:
        """Whether a file or the user states how images of another size are resized."""
        return "resize" in self.facts

    def _lacks_size(self) -> bool:
        """Whether the size of the images is unknown, while the network's only input might take images."""
        inputs = self.graph.graph.input
        return "size" not in self.facts and len(inputs) == 1 and len(inputs[0].type.tensor_type.shape.dim) in (2, 4)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels."""
        labels: tuple[str, ...] = self.facts["labels"].value
        return labels

    @property
    def size(self) -> tuple[int, ...]:
        """(height, width) or (height, width, channels); () if the size is unknown."""
        if "size" not in self.facts:
            return ()
        channels = self.facts.get("channels")
        return (*self.facts["size"].value, *([channels.value] if channels else []))

    @property
    def output(self) -> str:
        """The name of the output with the scores; "" if no source names it."""
        return str(self.facts["output"].value) if "output" in self.facts else ""

    @property
    def preprocessing(self) -> Preprocessing:
        """The arithmetic that the network expects."""
        names = [name for name in ("scale", "mean", "std", "bgr") if name in self.facts]
        return Preprocessing(**{name: self.facts[name].value for name in names})

    def choose_contract(self, taken: PixelContract) -> PixelContract:
        """The pixel contract that the user or the file states, with the chosen facts; or the one that the facts make.

        Args:
            taken: The shape of the pixels that the network takes.

        Raises:
            UsageError: A value is out of range, or two values do not fit together.
        """
        reading = _choose_reading(self.facts)
        if self.contract is None:
            return replace(taken, resize=to_resize(self.facts), **reading)
        rules = {name: self.facts[name].value for name in RESIZE[1:] if name in self.facts}
        resize = replace(self.contract.resize, mode=self.facts["resize"].value, **{"antialias": True, **rules})
        return replace(self.contract, height=taken.height, width=taken.width, resize=resize, **reading)

    def describe(self) -> list[str]:
        """One line for each fact that a file states: name, value and source."""
        facts = [fact for name in OPTIONS if (fact := self.facts.get(name)) and fact.source != STATED]
        return [f"found     {one.name.replace('_', ' ')} {show_value(one)}, in {one.source}" for one in facts]


def find_network(what: Path, stated: Mapping[str, Any], contract: PixelContract | None = None) -> FoundNetwork:
    """Find a network, and read what its files state about it.

    Args:
        what: An ONNX file, or a folder with one.
        stated: Values that the user states, by the names of facts; each takes precedence over all files.
        contract: The pixel contract that the user states, if any. It takes precedence over size and resize.

    Raises:
        UsageError: There is no network, a file is damaged, or two sources contradict each other.
        TrainMode: The network behaves as in training.
        OSError: A file cannot be read.
    """
    place = find_place(what)
    graph, notes = drop_inputs(read_network(place.file))
    check_eval_mode(graph)
    by_user = {**stated, **(list_pixel_facts(contract) if contract else {})}
    sources = read_facts(place, graph)
    facts = _fit_antialias(choose_facts(sources, by_user))
    notes += list_replaced(sources, by_user)
    keys = {entry.key: entry.value for entry in graph.metadata_props}
    notes += tuple(
        f"the file states {key} {keys[key][:80]!r}, which is left out: state it with {option}"
        for key, option in CREDITS.items()
        if keys.get(key)
    )
    own = read_own_contract(keys)
    if own is not None and stated.keys() & set(RESIZE):
        own = replace(own, resize=replace(own.resize, jpeg_scaling=False))
    return FoundNetwork(str(place.file), remove_maps(graph), facts, notes, contract or own)


def to_resize(facts: Mapping[str, Fact]) -> Resize:
    """Convert facts to a resize. If there are any, images are decoded and resized whole, as other libraries do.

    Args:
        facts: The chosen facts by name.

    Raises:
        UsageError: A value is out of range, or two values do not fit together.
    """
    names = ("crop_ratio", "interpolation", "crop_offset", "padding", "antialias")
    values = {name: facts[name].value for name in names if name in facts}
    if "resize" in facts:
        values["mode"] = facts["resize"].value
    return Resize(**values, jpeg_scaling=not values, keeps_exact_size=not values)


def _fit_antialias(facts: Mapping[str, Fact]) -> Mapping[str, Fact]:
    """The facts without an antialiasing that a file states and that the interpolation nearest has no use for.

    Raises:
        UsageError: The interpolation is one that is always antialiased, or both are stated by the user.
    """
    interpolation, antialias = facts.get("interpolation"), facts.get("antialias")
    if interpolation is None or antialias is None or antialias.value or interpolation.value in SAMPLED:
        return facts
    if interpolation.value == "nearest" and antialias.source != STATED:
        return {name: fact for name, fact in facts.items() if name != "antialias"}
    said = [
        option if fact.source == STATED else f"{words} in {fact.source}"
        for fact, option, words in (
            (interpolation, f"--interpolation {interpolation.value}", f"interpolation {interpolation.value}"),
            (antialias, "--no-antialias", "no antialiasing"),
        )
    ]
    raise UsageError(f"{' does not fit '.join(said)}: state --antialias, or --interpolation {' or '.join(SAMPLED)}")


def _choose_reading(facts: Mapping[str, Fact]) -> dict[str, Any]:
    """The rules of a pixel contract beside the resize that facts state: EXIF orientation and background."""
    rules = {name: facts[name].value for name in ("exif_orientation", "background") if name in facts}
    return {name: None if value == NO_BACKGROUND else value for name, value in rules.items()}
