"""Paths on the command line."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import click

MISSING = (errno.ENOENT, errno.ENOTDIR)


class ExistingPath(click.Path):
    """What is there; where looking is not allowed, that is said, not that nothing is there."""

    def __init__(self, **options: Any) -> None:
        super().__init__(exists=True, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check it.

        Raises:
            click.BadParameter: it is not there, cannot be looked at, or is something else.
        """
        try:
            Path(value).stat()
        except OSError as error:
            if error.errno not in MISSING:
                self.fail(f"{self.name.title()} {click.format_filename(value)!r}: {error.strerror}", param, ctx)
        return super().convert(value, param, ctx)
