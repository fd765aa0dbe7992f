"""Writes the files of a layout: nothing that is present is overwritten, and a new folder appears as a whole."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from evalmode.deployment.release import File
from evalmode.errors import UsageError
from evalmode.files import naming, write_atomically, write_synced

READABLE, REACHABLE = 0o644, 0o755  # the server may run as another user


def choose_files(folder: Path, files: Mapping[str, File], option: str) -> tuple[dict[str, bytes], tuple[Path, ...]]:
    """Choose which files of a layout have to be written.

    Args:
        folder: The folder of the layout; it may be missing.
        files: The files by path in the folder.
        option: The option that names another folder, for the message.

    Returns:
        The contents to write, by path in the folder, and the present files that are kept.

    Raises:
        UsageError: A file is present with another content.
        OSError: A present file cannot be read.
    """
    contents, kept = {}, []
    for name, file in files.items():
        path = folder / name
        present = _read(path)
        if present is None or (file.extends is not None and present == file.extends):
            contents[name] = file.content
        elif present != file.content and file.is_editable:
            kept.append(path)
        elif present != file.content:
            raise UsageError(
                f"{path} is present with another content, and is not overwritten: move it away, or name another "
                f"folder: {option}"
            )
    return contents, tuple(kept)


def _read(path: Path) -> bytes | None:
    """The content of a file; None if it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files: first those in new folders, which are renamed into place, then those that may name these folders.

    Args:
        folder: The folder of the layout; it is created if it is missing.
        contents: The contents by path in the folder.

    Raises:
        OSError: A file cannot be written; the error names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new: dict[Path, dict[Path, bytes]] = {}
    present = {}
    for name, content in contents.items():
        if missing := _find_missing(folder, Path(name)):
            new.setdefault(missing, {})[Path(name).relative_to(missing)] = content
        else:
            present[name] = content
    for missing, inner in new.items():
        _write_folder(folder, missing, inner)
    for name, content in present.items():
        write_atomically(folder / name, content)
        (folder / name).chmod(READABLE)


def _find_missing(folder: Path, name: Path) -> Path | None:
    """The outermost folder of a file that is missing; None if all exist."""
    outer = reversed(name.parents[:-1])
    return next((one for one in outer if not (folder / one).exists()), None)


def _write_folder(folder: Path, name: Path, contents: Mapping[Path, bytes]) -> None:
    """Write a folder with its files. Readers see all of it or nothing."""
    incoming = folder / f".incoming-{secrets.token_hex(8)}"
    try:
        with naming(folder / name):
            for inner, content in contents.items():
                path = incoming / inner
                path.parent.mkdir(parents=True, exist_ok=True)
                write_synced(path, content)
                path.chmod(READABLE)
            for one in (incoming, *(path for path in incoming.rglob("*") if path.is_dir())):
                one.chmod(REACHABLE)
            incoming.rename(folder / name)
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
