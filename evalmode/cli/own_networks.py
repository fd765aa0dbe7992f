"""Networks of the user in the working directory."""

from __future__ import annotations

import sys
from pathlib import Path


def search_working_directory() -> None:
    """Let ``--network package.module:function`` name a module in the working directory, as ``python -m`` does.

    The packages of evalmode and their dependencies are imported before, so that no file there hides them.
    """
    import training.fit  # noqa: F401

    sys.path.insert(0, str(Path.cwd()))
