"""What commands that make something say: lines for people, or one JSON object; ``--quiet`` keeps the lines back."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Output:
    """Where a command's results go.

    Attributes:
        as_json: one JSON object on standard output; lines go to standard error.
        quiet: no lines; errors and warnings are still said, on standard error.
    """

    as_json: bool
    quiet: bool

    def say(self, lines: str) -> None:
        """Lines for people."""
        if not self.quiet:
            click.echo(lines, err=self.as_json)

    def finish(self, facts: dict[str, Any]) -> None:
        """The result, once there is one."""
        if self.as_json:
            click.echo(json.dumps(facts))


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--json`` and ``--quiet``; it gets an ``Output`` as ``output``."""

    @click.option("--json", "as_json", is_flag=True, help="print one JSON object; lines go to standard error")
    @click.option("--quiet", is_flag=True, help="say nothing but warnings and errors, and the JSON object of --json")
    @functools.wraps(command)
    def run(*arguments: Any, as_json: bool, quiet: bool, **options: Any) -> None:
        command(*arguments, output=Output(as_json, quiet), **options)

    return run
