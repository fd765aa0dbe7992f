"""Strays: files and folders in a model repository that look like models or versions but are not, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evalmode.artifact.repository import ALLOWED, ARTIFACT_FILE, NAME, SUFFIX, VERSION, is_file, list_content

MAX_SHOWN = 3  # paths that a message names


def find_strays(repository: Path) -> dict[str, str]:
    """Find files and folders that look like a model or a version but are not; hidden ones are skipped.

    Returns:
        The reasons, by path.
    """
    strays: dict[str, str] = {}
    for folder in sorted(list_content(repository)):
        if folder.name.startswith("."):
            continue
        if folder.suffix == SUFFIX and is_file(folder):
            strays[str(folder)] = f"is not a model: a model is <name>/<version>/{ARTIFACT_FILE}"
        elif why := _why_unreadable(folder):
            strays[str(folder)] = why
        elif NAME.fullmatch(folder.name):
            strays |= find_version_strays(folder)
        elif any(is_file(path / ARTIFACT_FILE) for path in list_content(folder)):
            strays[str(folder)] = f"is not the name of a model: {ALLOWED}"
    return strays


def find_version_strays(folder: Path) -> dict[str, str]:
    """Find files and folders in the folder of a model that look like a version but are not; hidden ones are skipped.

    Returns:
        The reasons, by path.
    """
    return {str(path): why for path in sorted(list_content(folder)) if (why := _explain_stray(path))}


def explain_missing(repository: Path, name: str) -> str:
    """Explain why a repository has no version of a model.

    Args:
        repository: The folder of the model repository.
        name: The model's name.
    """
    if not NAME.fullmatch(name):
        return f"{name!r} is not the name of a model: {ALLOWED}"
    return explain_absent(repository) or explain_no_version(repository / name)


def explain_no_version(folder: Path) -> str:
    """Explain why the folder of a model has no version."""
    if absent := explain_absent(folder):
        return absent
    return f"{folder} holds no <version>/{ARTIFACT_FILE}{show_found(find_version_strays(folder))}"


def explain_absent(path: Path, wanted: str = "folder") -> str:
    """Explain why there is no folder, or no file; "" if there is one, and it can be read.

    Args:
        path: Where it should be.
        wanted: "folder" or "file".
    """
    if why := _why_unreadable(path):
        return f"{path} {why}"
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {path.readlink()}, which does not exist"
    if not path.exists():
        return f"{path} does not exist"
    other = "folder" if path.is_dir() else "file"
    return "" if other == wanted else f"{path} is a {other}, not a {wanted}"


def show_found(strays: Mapping[str, str]) -> str:
    """Return strays and their reasons in parentheses; "" if there are none."""
    found = [f"{path} {why}" for path, why in strays.items()]
    more = f", and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
    return f" ({'; '.join(found[:MAX_SHOWN])}{more})" if found else ""


def _explain_stray(path: Path) -> str:
    """Explain why a path in a model's folder is not a version; "" if it is one, or does not look like one."""
    if path.name.startswith("."):
        return ""
    if path.suffix == SUFFIX and is_file(path):
        return f"is not a version: a version is a folder with {ARTIFACT_FILE}, such as 1"
    if why := _why_unreadable(path):
        return why
    if not VERSION.fullmatch(path.name):
        wrong = "is not a version: a version is a whole number from 1 on, up to nine digits, without leading zeros"
        return wrong if is_file(path / ARTIFACT_FILE) else ""
    artifact = path / ARTIFACT_FILE
    if not path.is_dir() or is_file(artifact):
        return ""
    if artifact.is_symlink():
        return f"holds {ARTIFACT_FILE} as a link to {artifact.readlink()}, which does not exist"
    others = ", ".join(sorted(one.name for one in list_content(path))[:MAX_SHOWN])
    return f"holds no {ARTIFACT_FILE}" + (f", but {others}" if others else "")


def _why_unreadable(folder: Path) -> str:
    """Explain why a folder cannot be read; "" if it can be, or is not a folder."""
    try:
        if folder.is_dir():
            next(folder.iterdir(), folder).lstat()
    except FileNotFoundError:  # deleted meanwhile
        return ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""
