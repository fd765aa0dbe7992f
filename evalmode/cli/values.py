"""Parses values of options that are more than one number: sizes, lists of numbers, colours."""

from __future__ import annotations

import re

import click

MAX_LEVEL = 255


def parse_shape(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Parse the size of images, with the channels if they are named.

    Args:
        ctx: The command.
        param: The option.
        value: "HxW" or "HxWxC".

    Returns:
        (height, width) or (height, width, channels); () without a value.

    Raises:
        click.BadParameter: the text is something else.
    """
    if value is None:
        return ()
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})(?:x([13]))?", value)
    if not match:
        raise click.BadParameter(f"{value!r} is not HxW, such as 224x224, or HxWxC with 1 or 3 channels")
    return tuple(int(side) for side in match.groups() if side)


def parse_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...]:
    """Parse a list of numbers.

    Args:
        ctx: The command.
        param: The option.
        value: Such as "0.485,0.456,0.406".

    Returns:
        The numbers; () without a value.

    Raises:
        click.BadParameter: the text is something else.
    """
    try:
        return () if value is None else tuple(float(number) for number in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 0,1") from error


def parse_background(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | str | None:
    """Parse the colour under transparent pixels.

    Args:
        ctx: The command.
        param: The option.
        value: "none", or red, green and blue such as "255,255,255".

    Returns:
        The colour, each of 0 to 255, or "none"; None without a value.

    Raises:
        click.BadParameter: the text is something else.
    """
    if value is None or value == "none":
        return value
    match = re.fullmatch(r"(\d{1,3}),(\d{1,3}),(\d{1,3})", value)
    colour = tuple(map(int, match.groups())) if match else ()
    if not colour or max(colour) > MAX_LEVEL:
        raise click.BadParameter(f"{value!r} is not none, or red, green and blue of 0 to 255, such as 0,0,0")
    return colour
