"""Facts about a network with the file that states each, and the choice between several sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from evalmode.errors import UsageError
from evalmode.images.contract import PixelContract

OPTIONS = {  # the option that overrides each fact
    "labels": "--labels",
    "size": "--size",
    "channels": "--size HxWxC",
    "scale": "--scale",
    "mean": "--mean",
    "std": "--std",
    "bgr": "--bgr or --rgb",
    "resize": "--resize",
    "crop_ratio": "--crop-ratio",
    "interpolation": "--interpolation",
    "crop_offset": "--crop-offset",
    "antialias": "--antialias or --no-antialias",
    "padding": "--resize (in Python: contract=PixelContract(...))",
    "exif_orientation": "--exif-orientation or --no-exif-orientation",
    "background": "--background",
    "output": "--output",
}
RESIZE = ("resize", "crop_ratio", "interpolation", "crop_offset", "antialias")  # the facts about the resize
STATED = "option"  # the source of values that the user states
NO_BACKGROUND = "none"  # the value of a background that ignores transparency
TOLERANCE = 1e-6  # of numbers that two sources state, relative


@dataclass(frozen=True)
class Fact:
    """A fact that a source states.

    Attributes:
        name: A key of ``OPTIONS``.
        value: labels: a tuple of strings. size: (height, width). channels: 1 or 3. scale: the values of pixels 0 and
            255. mean, std: tuples of numbers. bgr, antialias, exif_orientation: a bool. resize: "crop", "squash",
            "letterbox" or "none". crop_ratio: the cropped side divided by the resized one. interpolation, crop_offset,
            output: a name. padding: red, green and blue of 0 to 255. background: likewise, or ``NO_BACKGROUND``.
        source: The file and the key that state it.
        problem: Why the value cannot be used; "" if it can. An option of the user resolves it.
        fallback: Whether any other source takes precedence, as for class numbers in place of names.
    """

    name: str
    value: Any
    source: str
    problem: str = ""
    fallback: bool = False


def choose_facts(facts: Iterable[Fact], stated: Mapping[str, Any]) -> dict[str, Fact]:
    """Choose one fact for each name.

    Args:
        facts: The facts of all sources.
        stated: Values that the user states, by the names of facts; each takes precedence over all sources.

    Returns:
        The facts by name.

    Raises:
        UsageError: Two sources contradict each other, or a value cannot be used.
    """
    facts = tuple(facts)
    chosen = {name: Fact(name, value, STATED) for name, value in stated.items()}
    faults = []
    for name in OPTIONS:
        found = [one for one in facts if one.name == name]
        found = [one for one in found if not one.fallback] or found
        if name in chosen or not found:
            continue
        faults += [f"{one.problem}; state {OPTIONS[name]}" for one in found if one.problem]
        usable = [one for one in found if not one.problem]
        others = [one for one in usable if not _agree(one.value, usable[0].value)]
        if others:
            said = " and ".join(f"{show_value(one)} in {one.source}" for one in (usable[0], others[0]))
            faults.append(f"sources contradict each other: {name.replace('_', ' ')} {said}; state {OPTIONS[name]}")
        if usable:
            chosen[name] = usable[0]
    if faults:
        raise UsageError(". ".join(dict.fromkeys(faults)))
    return chosen


def list_replaced(facts: Iterable[Fact], stated: Mapping[str, Any]) -> tuple[str, ...]:
    """List the facts of files that the user replaces by another value, a sentence each.

    Args:
        facts: The facts of all sources.
        stated: Values that the user states, by the names of facts.
    """
    return tuple(
        _describe_replaced(one, stated[one.name])
        for one in facts
        if one.name in stated and not (one.problem or one.fallback or _agree(one.value, stated[one.name]))
    )


def list_pixel_facts(contract: PixelContract) -> dict[str, Any]:
    """The facts that a pixel contract states, by name."""
    resize = contract.resize
    return {
        "size": (contract.height, contract.width),
        "channels": contract.channels,
        "resize": resize.mode,
        "crop_ratio": resize.crop_ratio,
        "interpolation": resize.interpolation,
        "crop_offset": resize.crop_offset,
        "antialias": resize.antialias,
        "exif_orientation": contract.exif_orientation,
        "background": contract.background or NO_BACKGROUND,
    }


def show_value(fact: Fact) -> str:
    """Show the value of a fact in a few words."""
    match fact.name, fact.value:
        case "labels", names:
            return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        case "size", (height, width):
            return f"{height}x{width}"
        case _, bool(value):
            return "yes" if value else "no"
        case _, tuple() as numbers:
            return ",".join(f"{one:.6g}" for one in numbers)
        case _, float() as number:
            return f"{number:.6g}"
        case _:
            return str(fact.value)


def make_fact(name: str, value: Any, source: str, read: Callable[[Any], Any]) -> Fact:
    """Make a fact of a value as a file states it.

    Args:
        name: The name of the fact.
        value: The value in the file.
        source: The file and the key.
        read: Converts the value; raises a ``ValueError`` whose message names what is expected.

    Returns:
        The fact; one with a problem if the value cannot be converted.
    """
    try:
        return Fact(name, read(value), source)
    except ValueError as error:
        return Fact(name, None, source, f"{source} is {repr(value)[:80]}: {error}")


def _describe_replaced(fact: Fact, stated: Any) -> str:
    if fact.name != "labels":
        name, value = fact.name.replace("_", " "), show_value(replace(fact, value=stated))
        return f"the stated {name} {value} replaces {show_value(fact)} in {fact.source}"
    pairs = enumerate(zip(stated, fact.value, strict=False))
    first = next((place for place, (mine, found) in pairs if mine != found), None)
    differ = (
        f"{len(stated)} instead of {len(fact.value)}"
        if first is None
        else f"label {first} is {stated[first]} instead of {fact.value[first]}"
    )
    return f"the stated labels replace those in {fact.source}: {differ}"


def _agree(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers up to rounding, and one number for all channels like one for each."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        if 1 in (len(one), len(other)):
            one, other = (values * max(len(one), len(other)) if len(values) == 1 else values for values in (one, other))
        return len(one) == len(other) and all(map(_agree, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)
