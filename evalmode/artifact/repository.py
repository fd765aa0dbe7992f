"""The model repository, a folder ``<name>/<version>/model.onnx``: finding models, versions and artifacts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalmode.artifact.links import check_links
from evalmode.errors import ArtifactInvalid, NameInvalid, UsageError

ARTIFACT_FILE = "model.onnx"
SUFFIX = ".onnx"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ALLOWED = "use up to 128 letters, digits, '.', '_' and '-', the first a letter or digit"
VERSION = re.compile(r"[1-9][0-9]{0,8}")


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
    return list_version_folders(repository / name) if NAME.fullmatch(name) else []


def list_version_folders(folder: Path) -> list[int]:
    """Return the versions in the folder of a model, ascending: see ``list_versions``."""
    folders = (path for path in list_content(folder) if VERSION.fullmatch(path.name))
    return sorted(int(path.name) for path in folders if is_file(path / ARTIFACT_FILE))


def list_onnx_files(folder: Path) -> list[Path]:
    """Return the ONNX files in a folder, sorted; hidden ones are skipped."""
    files = (path for path in list_content(folder) if path.suffix == SUFFIX and not path.name.startswith("."))
    return sorted(path for path in files if is_file(path))


def find_artifact(repository: Path, name: str, version: int, follow: Sequence[Path] = ()) -> Path:
    """Return the path of a version's artifact, relative to ``repository`` as it was passed.

    Args:
        repository: The folder of the model repository.
        name: The model's name.
        version: The number of the version.
        follow: Folders outside the repository that symbolic links may lead into.

    Raises:
        NameInvalid: The name is not allowed, see ``check_name``.
        ArtifactInvalid: There is no such version, or a symbolic link leads out of the repository.
    """
    path = repository / check_name(name) / str(version) / ARTIFACT_FILE
    if not is_file(path):
        known = ", ".join(map(str, list_versions(repository, name))) or "none"
        raise ArtifactInvalid(f"{path} does not exist; versions of {name}: {known}")
    check_links(repository, path, follow)
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
        path: A file, a folder with a single ONNX file, or a folder of a model repository: a version's, or a model's,
            of which the newest version is taken.

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
        files = list_onnx_files(path)
        if len(files) == 1:
            return ResolvedArtifact(files[0], "", "")
        found = f": {len(files)} {SUFFIX} files, name one of them" if files else ""
        raise UsageError(f"{path} holds no {ARTIFACT_FILE} and no version of a model{found}")
    newest = find_artifact(folder.parent, folder.name, versions[-1])
    return ResolvedArtifact(newest, folder.name, str(versions[-1]))


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
