"""The versions of the software that made an artifact."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

from evalmode.runtime.session import ORT_VERSION

DISTRIBUTIONS = ("evalmode", "torch", "onnx", "onnxscript", "numpy", "pillow")


def list_versions() -> dict[str, str | None]:
    """List the versions of the libraries, and the commit of the source; None if it is unknown."""
    return {
        **{name: version(name) for name in DISTRIBUTIONS},
        "onnxruntime": ORT_VERSION,
        "commit": _find_commit(),
    }


def _find_commit() -> str | None:
    """Find the commit of the source of evalmode; None if it does not run from a checkout."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", Path(__file__).name)  # not a user's repository around an installation
        return ask("describe", "--always", "--exclude=*", "--abbrev=40", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None
