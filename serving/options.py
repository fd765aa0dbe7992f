"""Options that are declared once: a field of a dataclass gives flag, environment variable, range, help and docs row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from evalmode.errors import UsageError

VARIABLE_PREFIX = "EVALMODE_SERVE_"

Value = TypeVar("Value")


def option(default: Value, what: str, **rules: Any) -> Value:
    """Declare a field of a dataclass that is an option.

    Args:
        default: The default of the option.
        what: The help of the option.
        rules: ``minimum`` and ``maximum`` of a number, ``choices`` of a string, or ``metavar``.

    Returns:
        A field of a dataclass with the metadata.
    """
    return field(default=default, metadata={"what": what, **rules})


@dataclass(frozen=True)
class Option:
    """An option of ``evalmode serve``.

    Attributes:
        name: The name of the field, which is the keyword of the Python API.
        kind: The type of the value: bool, int, float, str, Path, or tuple for an option that can be repeated.
        default: The default; ``MISSING`` if the option is required.
        rules: The metadata of the field.
    """

    name: str
    kind: type
    default: Any
    rules: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return VARIABLE_PREFIX + self.name.upper()

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
            value: The value. A path may be a string, a repeatable option a list or a single string.

        Returns:
            The value as a field of the configuration holds it.

        Raises:
            UsageError: The value has another type, is outside the range, or is not one of the choices.
        """
        if value is None and self.default is None:
            return None
        if self.kind is Path and isinstance(value, str | PathLike):
            value = Path(value)
        if self.kind is tuple:
            value = (value,) if isinstance(value, str) else tuple(value)
        if self.kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            raise UsageError(f"{self.flag} {value!r} is not of type {self.kind.__name__}")
        choices, low, high = (self.rules.get(rule) for rule in ("choices", "minimum", "maximum"))
        if choices and value not in choices:
            raise UsageError(f"{self.flag} {value!r} is not one of {', '.join(choices)}")
        if (low is not None and not low <= value) or (high is not None and not value <= high):
            raise UsageError(f"{self.flag} {value} is outside {low}..{'' if high is None else high}")
        return value


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
        kinds = get_type_hints(config)
        for one in fields(config):
            if is_dataclass(kinds[one.name]):
                nested += list_options(kinds[one.name])
            else:
                options.append(Option(one.name, _find_kind(kinds[one.name]), one.default, one.metadata))
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


def _find_kind(annotation: Any) -> type:
    """Return the class of a field's values: of ``Path | None`` it is ``Path``."""
    if isinstance(annotation, UnionType):
        annotation = next(one for one in get_args(annotation) if one is not NoneType)
    kind: type = get_origin(annotation) or annotation
    return kind
