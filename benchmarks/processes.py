"""Modules of this repository in processes of their own, whatever the current folder is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def list_command(module: str, *arguments: object) -> list[str]:
    """List the words of the command that runs a module; it needs the environment of ``make_environment``.

    Args:
        module: The module's full name.
        arguments: Its arguments.
    """
    return [sys.executable, "-m", module, *map(str, arguments)]


def make_environment(**variables: str) -> dict[str, str]:
    """Make the environment of a process that imports the modules of this repository.

    Args:
        variables: Further variables.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(paths)}
