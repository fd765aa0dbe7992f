"""The output of commands that produce something: lines for people, or one JSON object; ``--quiet`` omits the lines."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Output:
    """How a command reports its results.

    Attributes:
        as_json: Whether to print one JSON object on standard output; lines go to standard error then.
        quiet: Whether to omit the lines. Errors and warnings are still printed, on standard error.
    """

    as_json: bool
    quiet: bool

    def say(self, lines: str) -> None:
        """Print lines for people."""
        if not self.quiet:
            click.echo(lines, err=self.as_json)

    def finish(self, facts: dict[str, Any]) -> None:
        """Print the result as JSON, if that was requested."""
        if self.as_json:
            click.echo(json.dumps(facts))


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--json`` and ``--quiet`` to a command, which receives them as an ``Output`` named ``output``."""

    @click.option("--json", "as_json", is_flag=True, help="print one JSON object; lines go to standard error")
    @click.option("--quiet", is_flag=True, help="print only warnings, errors, and the JSON object of --json")
    @functools.wraps(command)
    def run(*arguments: Any, as_json: bool, quiet: bool, **options: Any) -> None:
        command(*arguments, output=Output(as_json, quiet), **options)

    return run
