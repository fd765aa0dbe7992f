"""The model repository, a folder ``<name>/<version>/model.onnx``: finding models, versions and artifacts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from evalmode.errors import ArtifactInvalid, NameInvalid, UsageError

ARTIFACT_FILE = "model.onnx"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ALLOWED = "use up to 128 letters, digits, '.', '_' and '-', the first a letter or digit"
VERSION = re.compile(r"[1-9][0-9]{0,8}")
MAX_STEPS = 1000  # steps through symbolic links: the system itself follows 40 links


def check_name(name: str) -> str:
    """Return a model name if it is safe as the name of a folder.

    Raises:
        NameInvalid: It contains characters other than letters, digits, ``.``, ``_`` and ``-``, or does not start with
            a letter or digit.
    """
    if not NAME.fullmatch(name):
        raise NameInvalid(f"model name {name!r} is not allowed: {ALLOWED}")
    return name


def list_names(repository: Path) -> list[str]:
    """Return the names of the models that have at least one version, sorted; empty if the folder cannot be read."""
    return sorted(folder.name for folder in list_content(repository) if list_versions(repository, folder.name))


def list_versions(repository: Path, name: str) -> list[int]:
    """Return the versions of a model, ascending.

    A version is a folder that is named by a positive integer and contains an artifact. ``find_strays`` returns what is
    left out.

    Args:
        repository: The folder of the model repository.
        name: The model's name. A name that is not allowed has no versions, so that it cannot lead out of the folder.
    """
    if not NAME.fullmatch(name):
        return []
    folders = (folder for folder in list_content(repository / name) if VERSION.fullmatch(folder.name))
    return sorted(int(folder.name) for folder in folders if is_file(folder / ARTIFACT_FILE))


def find_artifact(repository: Path, name: str, version: int, follow_links: bool = False) -> Path:
    """Return the path of a version's artifact, relative to ``repository`` as it was passed.

    Args:
        repository: The folder of the model repository.
        name: The model's name.
        version: The number of the version.
        follow_links: Whether symbolic links may lead out of the repository.

    Raises:
        NameInvalid: The name is not allowed, see ``check_name``.
        ArtifactInvalid: There is no such version, or a symbolic link leads out of the repository.
    """
    path = repository / check_name(name) / str(version) / ARTIFACT_FILE
    if not is_file(path):
        known = ", ".join(map(str, list_versions(repository, name))) or "none"
        raise ArtifactInvalid(f"{path} does not exist; versions of {name}: {known}")
    if not follow_links and (link := _find_link_out(repository, path)):
        raise ArtifactInvalid(
            f"{path} is outside the repository: {link} is a link to {link.readlink()}; publish a copy, or serve with "
            "--follow-links"
        )
    return path


@dataclass(frozen=True)
class ResolvedArtifact:
    """An artifact that a path names.

    Attributes:
        path: The file.
        name: The model's name; "" if the path is that of a file.
        version: Its version; "" if the path is that of a file.
    """

    path: Path
    name: str
    version: str


def resolve_artifact(path: Path) -> ResolvedArtifact:
    """Find the artifact that a path names.

    Args:
        path: A file, or a folder of a model repository: a version's, or a model's, of which the newest version is
            taken.

    Returns:
        The artifact. Whether a file exists is not checked.

    Raises:
        ArtifactInvalid: The newest version is a symbolic link that leads out of the repository.
        UsageError: The folder holds no artifact.
    """
    if not path.is_dir():
        return ResolvedArtifact(path, "", "")
    folder = path.absolute()
    if (path / ARTIFACT_FILE).is_file():
        return ResolvedArtifact(path / ARTIFACT_FILE, folder.parent.name, folder.name)
    versions = list_versions(folder.parent, folder.name)
    if not versions:
        raise UsageError(f"{path} holds no {ARTIFACT_FILE} and no version of a model")
    newest = find_artifact(folder.parent, folder.name, versions[-1])
    return ResolvedArtifact(newest, folder.name, str(versions[-1]))


def _find_link_out(repository: Path, path: Path) -> Path | None:
    """Return the symbolic link by which a path in a repository leads out of it; None if it stays inside.

    Folders are compared by device and inode, not by name: seen through the root of another process (/proc/PID/root)
    or a mount, a resolved path may be another folder.

    Raises:
        ArtifactInvalid: There are too many links.
    """
    home = repository.stat()
    place, depth, link = repository, 0, repository
    ahead = [*path.relative_to(repository).parts][::-1]
    for _ in range(MAX_STEPS):
        if not ahead:
            return link if depth < 0 else None
        part = ahead.pop()
        place = place / part  # an absolute link starts with "/", which replaces the place
        if os.path.samestat(place.stat(), home):
            place, depth = repository, 0
        elif depth >= 0 and part not in ("..", "/") and place.is_symlink():
            link = place
            ahead.extend(place.readlink().parts[::-1])
            place = place.parent
        elif depth >= 0:  # once outside, the system follows the links
            depth = {"..": depth - 1, "/": -1}.get(part, depth + 1)
    raise ArtifactInvalid(f"{path} has too many links")


def list_content(folder: Path) -> list[Path]:
    """Return the content of a folder; empty if it cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def is_file(path: Path) -> bool:
    """Return whether a path is a file; False if that is unknown."""
    try:
        return path.is_file()
    except OSError:
        return False
