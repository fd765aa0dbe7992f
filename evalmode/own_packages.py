"""The packages ``serving`` and ``training``, which belong to evalmode: a folder of the user may have the same name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from evalmode.errors import EvalmodeError

ROOT = Path(__file__).parents[1]  # where evalmode is installed, and both packages beside it
PACKAGES = ("serving", "training")


class _OwnFinder(MetaPathFinder):
    """Finds evalmode's own packages, whatever ``sys.path`` has before them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [str(ROOT)]) if fullname in PACKAGES else None


def prefer_own_packages() -> None:
    """Import evalmode's own packages in this process, whatever is in the working directory. For the command only."""
    sys.meta_path.insert(0, _OwnFinder())


def import_own(module: str) -> ModuleType:
    """Import a module of evalmode, ``serving`` or ``training``.

    Args:
        module: The module's full name.

    Returns:
        The module.

    Raises:
        EvalmodeError: A folder or file of the user hides the package.
        ModuleNotFoundError: A package that the module needs is not installed.
    """
    package = module.partition(".")[0]
    if package in PACKAGES and (hiding := _find_hiding(package)):
        raise EvalmodeError(
            f"{hiding} hides evalmode's package {package!r} in {ROOT / package}: rename it, or take {hiding.parent} "
            "off sys.path (Python adds the script's folder, or the working directory)"
        )
    return importlib.import_module(module)


def _find_hiding(package: str) -> Path | None:
    """The folder or file that Python imports in place of evalmode's own package."""
    loaded = sys.modules.get(package)
    origin = loaded.__file__ if loaded else getattr(find_spec(package), "origin", None)
    if not origin:
        return None
    found = Path(origin)
    if found.parent.samefile(ROOT / package):
        return None
    return found.parent if found.name == "__init__.py" else found
