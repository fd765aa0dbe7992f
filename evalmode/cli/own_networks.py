"""Networks of the user in the working directory."""

from __future__ import annotations

import sys
from pathlib import Path


def search_working_directory() -> None:
    """Let ``--network package.module:function`` name a module in the working directory, like ``python -m``.

    The directory comes last on the path: a file in it, such as ``onnx.py``, hides no installed package, many of which
    are imported only when they are needed.
    """
    sys.path.append(str(Path.cwd()))
