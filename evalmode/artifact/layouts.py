"""Layouts of models: where the models, versions and files lie in the folder, or the file, that a user names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evalmode.artifact.links import check_links
from evalmode.artifact.repository import (
    ARTIFACT_FILE,
    SUFFIX,
    check_name,
    find_artifact,
    is_file,
    list_content,
    list_names,
    list_onnx_files,
    list_version_folders,
    list_versions,
)
from evalmode.artifact.strays import (
    MAX_SHOWN,
    explain_absent,
    explain_missing,
    explain_no_version,
    find_strays,
    find_version_strays,
    show_found,
)
from evalmode.errors import ArtifactInvalid

ACCEPTED = f"<name>/<version>/{ARTIFACT_FILE}, no <version>/{ARTIFACT_FILE} and no single *{SUFFIX} file"


class Layout(Protocol):
    """The models of a repository, in one of the layouts that ``recognise`` knows."""

    def describe(self) -> str:
        """The layout, and what is served from it, in one line."""

    def list_names(self) -> list[str]:
        """The names of the models, sorted."""

    def list_versions(self, name: str) -> list[int]:
        """The versions of a model, ascending; empty if there is no such model."""

    def find_artifact(self, name: str, version: int) -> Path:
        """The file of a version.

        Args:
            name: The name of the model.
            version: The number of the version.

        Raises:
            NameInvalid: The name cannot be that of a model.
            ArtifactInvalid: There is no such version, or a symbolic link leads out of the repository.
        """

    def find_strays(self) -> dict[str, str]:
        """Files and folders that look like a model or a version but are not: the reasons, by path."""

    def explain_missing(self, name: str = "") -> str:
        """Why there is no version of a model or, if ``name`` is "", of any model."""


@dataclass(frozen=True)
class NamedModels:
    """Models by name: ``<name>/<version>/model.onnx``.

    Attributes:
        folder: The folder of the model repository.
        follow: Folders outside the repository that symbolic links may lead into.
    """

    folder: Path
    follow: tuple[Path, ...] = ()

    def describe(self) -> str:
        """The folder and the names of its models."""
        return f"{self.folder} holds <name>/<version>/{ARTIFACT_FILE}: {', '.join(self.list_names())}"

    def list_names(self) -> list[str]:
        """The names of the folders that hold a version."""
        return list_names(self.folder)

    def list_versions(self, name: str) -> list[int]:
        """The versions in the model's folder."""
        return list_versions(self.folder, name)

    def find_artifact(self, name: str, version: int) -> Path:
        """The file in the folder of the version.

        Args:
            name: The name of the model.
            version: The number of the version.

        Raises:
            NameInvalid: The name cannot be that of a model.
            ArtifactInvalid: It has no such version, or a symbolic link leads out of the repository.
        """
        return find_artifact(self.folder, name, version, self.follow)

    def find_strays(self) -> dict[str, str]:
        """See ``evalmode.artifact.strays.find_strays``."""
        return find_strays(self.folder)

    def explain_missing(self, name: str = "") -> str:
        """Why a model, or the whole folder, has no version."""
        if name:
            return explain_missing(self.folder, name)
        if absent := explain_absent(self.folder):
            return f"{absent} or *{SUFFIX} file" if is_file(self.folder) else absent
        return f"{self.folder} holds no {ACCEPTED}{show_found(self.find_strays()) or _show_content(self.folder)}"


@dataclass(frozen=True)
class OneModel:
    """The versions of one model: ``<version>/model.onnx``.

    Attributes:
        folder: The folder of the model.
        name: The name of the model.
        follow: Folders outside the repository that symbolic links may lead into.
    """

    folder: Path
    name: str
    follow: tuple[Path, ...] = ()

    def describe(self) -> str:
        """The folder, its versions, and the model's name."""
        versions = ", ".join(map(str, self.list_versions(self.name)))
        return f"{self.folder} holds <version>/{ARTIFACT_FILE}: versions {versions}, served as model {self.name}"

    def list_names(self) -> list[str]:
        """The name of the model if there is a version."""
        return [self.name] if self.list_versions(self.name) else []

    def list_versions(self, name: str) -> list[int]:
        """The versions in the folder."""
        return list_version_folders(self.folder) if name == self.name else []

    def find_artifact(self, name: str, version: int) -> Path:
        """The file in the folder of the version.

        Args:
            name: The name of the model.
            version: The number of the version.

        Raises:
            NameInvalid: The name cannot be that of a model.
            ArtifactInvalid: It has no such version, or a symbolic link leads out of the repository.
        """
        path = self.folder / str(version) / ARTIFACT_FILE
        if check_name(name) != self.name or not is_file(path):
            known = ", ".join(map(str, self.list_versions(name))) or "none"
            raise ArtifactInvalid(f"{name}/{version} is not in {self.folder}; versions of {name}: {known}")
        check_links(self.folder, path, self.follow)
        return path

    def find_strays(self) -> dict[str, str]:
        """What looks like a version but is not."""
        return find_version_strays(self.folder)

    def explain_missing(self, name: str = "") -> str:
        """Why the model has no version, or is another one."""
        return _explain_other(self.folder, name, self.name) or explain_no_version(self.folder)


@dataclass(frozen=True)
class OneFile:
    """A single file, as the only version of one model.

    Attributes:
        root: What the user named: the file, or its folder.
        path: The file.
        name: The name of the model.
        version: The version of the model.
        follow: Folders outside ``root`` that symbolic links may lead into.
    """

    root: Path
    path: Path
    name: str
    version: int
    follow: tuple[Path, ...] = ()

    def describe(self) -> str:
        """The file, and the model's name and version."""
        return f"the single file {self.path} is served as model {self.name} version {self.version}"

    def list_names(self) -> list[str]:
        """The name of the model if the file exists."""
        return [self.name] if is_file(self.path) else []

    def list_versions(self, name: str) -> list[int]:
        """The only version if the file exists."""
        return [self.version] if name == self.name and is_file(self.path) else []

    def find_artifact(self, name: str, version: int) -> Path:
        """The file.

        Args:
            name: The name of the model.
            version: The number of the version.

        Raises:
            NameInvalid: The name cannot be that of a model.
            ArtifactInvalid: It has no such version, or a symbolic link leads out of the repository.
        """
        if version not in self.list_versions(check_name(name)):
            known = ", ".join(map(str, self.list_versions(name))) or "none"
            raise ArtifactInvalid(f"{name}/{version} is not {self.path}; versions of {name}: {known}")
        if self.path != self.root:
            check_links(self.root, self.path, self.follow)
        return self.path

    def find_strays(self) -> dict[str, str]:
        """Other ONNX files in the folder, and versions beside the file."""
        if self.path == self.root:
            return {}
        versions = [self.root / str(version) / ARTIFACT_FILE for version in list_version_folders(self.root)]
        others = [path for path in (*list_onnx_files(self.root), *versions) if path != self.path]
        return {str(path): f"is not served: {self.path} is served as the only file" for path in others}

    def explain_missing(self, name: str = "") -> str:
        """Why the file is missing, or the model is another one."""
        other = _explain_other(self.path, name, self.name)
        return other or explain_absent(self.path, "file") or f"{self.path} cannot be read"


def _explain_other(path: Path, name: str, known: str) -> str:
    """Explain that a path holds another model; "" if it is the one that is asked for, or any is."""
    return f"{path} holds the model {known} alone" if name and name != known else ""


def _show_content(folder: Path) -> str:
    """Return what a folder holds, in parentheses."""
    names = [_show_entry(path) for path in sorted(list_content(folder)) if not path.name.startswith(".")]
    more = f", and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return f" (found {', '.join(names[:MAX_SHOWN])}{more})" if names else " (it is empty)"


def _show_entry(path: Path) -> str:
    broken = path.is_symlink() and not path.exists()
    return f"{path.name}, a link to {path.readlink()}, which does not exist" if broken else path.name
