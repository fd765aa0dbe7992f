"""Paths on the command line."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import click

MISSING = (errno.ENOENT, errno.ENOTDIR)


class ExistingPath(click.Path):
    """A path that must exist. If it cannot be accessed, the error says so, rather than that it does not exist."""

    def __init__(self, **options: Any) -> None:
        super().__init__(exists=True, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check the path.

        Args:
            value: The path.
            param: The option.
            ctx: The command.

        Returns:
            The path, of the type that the option asks for.

        Raises:
            click.BadParameter: It does not exist, cannot be accessed, or is of another kind.
        """
        try:
            Path(value).stat()
        except OSError as error:
            if error.errno not in MISSING:
                self.fail(f"{self.name.title()} {click.format_filename(value)!r}: {error.strerror}", param, ctx)
        return super().convert(value, param, ctx)
