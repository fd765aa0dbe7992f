"""Options of a command from the fields of a frozen dataclass: flag, type, range, default and help text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import click

from training.options import list_choices

Command = Callable[..., Any]


def dataclass_options(kind: type) -> Callable[[Command], Command]:
    """Give a command one option for each field of a dataclass.

    Args:
        kind: The dataclass. The metadata of a field are those of `training.options`.

    Returns:
        A decorator. The command gets the values by the names of the fields.
    """
    hints = get_type_hints(kind)

    def decorate(command: Command) -> Command:
        for one in reversed(fields(kind)):
            command = _make_option(one, hints[one.name])(command)
        return command

    return decorate


def _make_option(one: Field[Any], hint: Any) -> Callable[[Command], Command]:
    rules, flag = one.metadata, "--" + one.name.replace("_", "-")
    settings: dict[str, Any] = {"default": one.default, "help": rules["what"]}
    if "shown" in rules:
        settings["show_default"] = rules["shown"]
    kinds = set(get_args(hint)) if isinstance(hint, UnionType) else {hint}
    if bool in kinds:
        off = f"/--no-{flag[2:]}" if one.default is not False else ""
        return click.option(flag + off, is_flag=True, **settings)
    if any(get_origin(kind) is tuple for kind in kinds):
        return click.option(flag, metavar="HxW", callback=parse_size, **settings)
    return click.option(flag, type=_choose_type(hint, kinds, rules), **settings)


def _choose_type(hint: Any, kinds: set[Any], rules: Mapping[str, Any]) -> click.ParamType[Any]:
    if choices := list_choices(hint):
        return click.Choice(choices)
    bounds = {"min": rules.get("minimum", rules.get("above")), "max": rules.get("maximum", rules.get("below"))}
    if int in kinds:
        return click.IntRange(**bounds)
    if float in kinds:
        return click.FloatRange(**bounds, min_open="above" in rules, max_open="below" in rules)
    return click.Path(file_okay=False, path_type=Path) if Path in kinds else click.STRING


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Parse HxW as (height, width).

    Args:
        ctx: Context of the command.
        param: The option.
        value: What the user gave.

    Returns:
        Height and width in pixels; None if the option was not given.

    Raises:
        click.BadParameter: the value has another form.
    """
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value)  # up to `training.options.MAX_SIDE`
    if not match:
        raise click.BadParameter(f"{value!r} is not HxW, such as 32x32")
    return int(match[1]), int(match[2])
