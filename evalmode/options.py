"""Options that are declared once: a field of a dataclass gives keyword, flag, environment variable, range and help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from evalmode.errors import UsageError

BOUNDS = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}  # rule -> in words
NUMBERS: dict[type, type] = {int: Integral, float: Real}  # those of numpy, too

Config = TypeVar("Config")


def option(default: Any, what: str, **rules: Any) -> Any:
    """Declare a field of a dataclass that is an option.

    Args:
        default: The default of the option.
        what: The help of the option.
        rules: ``minimum`` and ``maximum`` of a number; ``above`` and ``below`` for bounds that are excluded;
            ``choices`` of a string; ``path`` for a path that must be a ``file`` that exists, or must not be one
            (``folder``); ``bare``: the value if the command line has none, or Python passes True; ``beyond``: what
            happens beyond a limit; ``shown``: the default in the help; ``metavar``.

    Returns:
        A field of a dataclass with the metadata.
    """
    return field(default=default, metadata={"what": what, **rules})


@dataclass(frozen=True)
class Option:
    """An option of a command and of a function of the Python API.

    Attributes:
        name: The name of the field, which is the keyword of the Python API.
        kind: The type of the value: bool, int, float, str, Path, or tuple.
        is_repeatable: Whether the value is a tuple of any number of strings.
        choices: The strings that are allowed; empty if all are.
        default: The default; ``MISSING`` if the option is required.
        rules: The metadata of the field.
    """

    name: str
    kind: type
    is_repeatable: bool
    choices: tuple[str, ...]
    default: Any
    rules: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_required(self) -> bool:
        """Whether the option has no default."""
        return self.default is MISSING

    @property
    def help(self) -> str:
        """The help, with what happens beyond a limit."""
        beyond = self.rules.get("beyond")
        return f"{self.rules['what']}; beyond it: {beyond}" if beyond else str(self.rules["what"])

    def convert(self, value: Any) -> Any:
        """Convert a value from Python to the type of the option, and check it.

        Args:
            value: The value. A path may be a string, a tuple a list, and a repeatable option a single string.

        Returns:
            The value as a field of the configuration holds it.

        Raises:
            UsageError: The value has another type, is outside the range, or is not one of the choices.
        """
        if value is None and self.default is None:
            return None
        if isinstance(value, bool) and "bare" in self.rules:
            value = self.rules["bare"] if value else self.default
        converted = self._cast(value)
        if self.choices and converted not in self.choices:
            raise UsageError(f"{self.name} {value!r} is unknown: choose {' or '.join(self.choices)}")
        if self.rules.keys() & BOUNDS.keys() and not self._is_inside(converted):
            allowed = ", ".join(f"{words} {self.rules[name]}" for name, words in BOUNDS.items() if name in self.rules)
            raise UsageError(f"{self.name} {value} is out of range: {allowed}")
        return converted

    def _cast(self, value: Any) -> Any:
        """Return the value as an instance of the type of the option.

        Raises:
            UsageError: It has another type.
        """
        kind: Any = self.kind
        if isinstance(value, bool) and kind is not bool:
            pass  # bool is a subclass of int
        elif isinstance(value, kind):
            if not self.is_repeatable:
                return value
            if all(isinstance(one, str | PathLike) for one in value):
                return tuple(map(fspath, value))
        elif kind is Path and isinstance(value, str | PathLike):
            return Path(value)
        elif kind is str and isinstance(value, PathLike):
            return fspath(value)
        elif kind in NUMBERS and isinstance(value, NUMBERS[kind]):
            return kind(value)
        elif self.is_repeatable and isinstance(value, str | PathLike):
            return (fspath(value),)
        elif kind is tuple and isinstance(value, list):
            return self._cast(tuple(value))
        raise UsageError(f"{self.name} {value!r} is not of type {kind.__name__}")

    def _is_inside(self, value: float) -> bool:
        """Check a value against the bounds; NaN is outside of all."""
        rules = self.rules
        return (
            rules.get("minimum", value) <= value <= rules.get("maximum", value)
            and ("above" not in rules or value > rules["above"])
            and ("below" not in rules or value < rules["below"])
        )


def list_options(*configs: type) -> list[Option]:
    """List the options that dataclasses declare.

    Args:
        configs: Dataclasses such as ``ServeConfig``. A field may hold another dataclass: its options come last.

    Returns:
        The options in the order of the fields.
    """
    options: list[Option] = []
    nested: list[Option] = []
    for config in configs:
        hints = get_type_hints(config)
        for one in fields(config):
            if is_dataclass(hints[one.name]):
                nested += list_options(hints[one.name])
            else:
                kind, is_repeatable, choices = _read_hint(hints[one.name])
                choices = one.metadata.get("choices", choices)
                options.append(Option(one.name, kind, is_repeatable, choices, one.default, one.metadata))
    return options + nested


def convert_fields(config: object) -> None:
    """Convert and check the options of a frozen dataclass, in its ``__post_init__``.

    The options of a nested dataclass are left to the nested dataclass.

    Args:
        config: The dataclass.

    Raises:
        UsageError: A value has another type, is outside its range, or is not one of the choices.
    """
    for one in list_options(type(config)):
        if hasattr(config, one.name):
            object.__setattr__(config, one.name, one.convert(getattr(config, one.name)))


def check_names(config: type, names: Mapping[str, Any], subject: str) -> None:
    """Check that options exist.

    Args:
        config: The dataclass that declares the options.
        names: The options that the user has set.
        subject: What the options belong to, such as "a server".

    Raises:
        UsageError: An option does not exist; the message names one with a similar name.
    """
    known = [one.name for one in list_options(config)]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = f": did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{subject} has no option {name!r}{meant}")


def make_config(config: type[Config], options: Mapping[str, Any], subject: str) -> Config:
    """Make a dataclass of options from options by name.

    Args:
        config: The dataclass.
        options: The options that the user has set; the others have their defaults.
        subject: What the options belong to, such as "a training".

    Returns:
        The dataclass.

    Raises:
        UsageError: An option is unknown, or its value is invalid.
    """
    check_names(config, options, subject)
    return config(**options)


def _read_hint(hint: Any) -> tuple[type, bool, tuple[str, ...]]:
    """Return the class of a field's values, whether it is a tuple of any length, and the choices of a ``Literal``."""
    if NoneType in get_args(hint):
        hint = next(one for one in get_args(hint) if one is not NoneType)
    if get_origin(hint) is Literal:
        return str, False, get_args(hint)
    return get_origin(hint) or hint, Ellipsis in get_args(hint), ()
