"""Options of a command from the fields of frozen dataclasses: flag, type, range, default and help text."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from evalmode.cli.paths import ExistingPath
from evalmode.options import Option, list_options

Command = Callable[..., Any]


def dataclass_options(*kinds: type) -> Callable[[Command], Command]:
    """Give a command one option for each option that dataclasses declare.

    Args:
        kinds: The dataclasses, see `evalmode.options`.

    Returns:
        A decorator. The command gets the values by the names of the fields.
    """

    def decorate(command: Command) -> Command:
        for one in reversed(list_options(*kinds)):
            command = _make_option(one)(command)
        return command

    return decorate


def _make_option(option: Option) -> Callable[[Command], Command]:
    settings: dict[str, Any] = {"help": option.help, "metavar": option.rules.get("metavar")}
    settings |= {"required": True} if option.is_required else {"default": option.default}
    if "shown" in option.rules:
        settings["show_default"] = option.rules["shown"]
    if option.kind is bool:
        off = f"/--no-{option.flag[2:]}" if option.default is not False else ""
        return click.option(option.flag + off, is_flag=True, **settings)
    if "bare" in option.rules:
        settings |= {"is_flag": False, "flag_value": option.rules["bare"]}
    if option.is_repeatable:
        kind = click.Path(file_okay=False) if option.rules.get("path") == "folder" else click.STRING
        return click.option(option.flag, type=kind, multiple=True, **settings)
    if option.kind is tuple:
        return click.option(option.flag, callback=parse_size, **{**settings, "metavar": "HxW"})
    return click.option(option.flag, type=_choose_type(option), **settings)


def _choose_type(option: Option) -> click.ParamType[Any]:
    if option.choices:
        return click.Choice(option.choices)
    rules = option.rules
    bounds = {"min": rules.get("minimum", rules.get("above")), "max": rules.get("maximum", rules.get("below"))}
    if option.kind is int:
        return click.IntRange(**bounds)
    if option.kind is float:
        return click.FloatRange(**bounds, min_open="above" in rules, max_open="below" in rules)
    if option.kind is not Path:
        return click.STRING
    if rules.get("path") == "file":
        return ExistingPath(dir_okay=False, path_type=Path)
    return click.Path(file_okay=rules.get("path") != "folder", path_type=Path)


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
