"""The options that bound an image, for every command that reads images; ``serve`` has them among its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from evalmode.limits import Limits

IMAGE_LIMITS = ("max_image_bytes", "max_image_pixels")


def image_limit_options(defaults: Limits | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options ``--max-image-bytes`` and ``--max-image-pixels``, from the table of limits.

    Args:
        defaults: The command's defaults; None passes None to the command if the user gives no value.

    Returns:
        A decorator.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for limit in (limit for limit in fields(Limits) if limit.name in IMAGE_LIMITS):
            row = limit.metadata
            command = click.option(
                f"--{limit.name.replace('_', '-')}",
                type=click.IntRange(row["minimum"], row["maximum"]),
                default=getattr(defaults, limit.name) if defaults else None,
                show_default=True if defaults else f"{limit.default} with --file",
                help=f"{row['what']}; a larger one is an error",
            )(command)
        return command

    return decorate
