"""What a command that publishes states in the file, and the layouts of other tools that it writes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from evalmode.deployment.targets import ALSO, AUTHOR, LICENSE, check_credits, check_kinds


@dataclass(frozen=True)
class Publishing:
    """The options of a command that publishes.

    Attributes:
        author: Who made the model; None if that is not stated.
        license: The name of its licence; None if that is not stated.
        also: Layouts of other tools, ``KIND`` or ``KIND=DIR`` each.

    Raises:
        UsageError: A value cannot be used.
    """

    author: str | None
    license: str | None
    also: tuple[str, ...]

    def __post_init__(self) -> None:
        check_credits(self.author, self.license)
        check_kinds(self.also)


def publishing_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--author``, ``--license`` and ``--also``; the command receives them as a ``Publishing``."""

    @click.option("--author", help=AUTHOR["what"])
    @click.option("--license", help=LICENSE["what"])
    @click.option("--also", multiple=True, metavar=ALSO["metavar"], help=ALSO["what"])
    @functools.wraps(command)
    def run(*arguments: Any, author: str | None, license: str | None, also: tuple[str, ...], **options: Any) -> None:
        command(*arguments, publishing=Publishing(author, license, also), **options)

    return run
