"""Layouts of models: where the models, versions and files lie in the folder, or the file, that a user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evalmode.artifact.links import check_links
from evalmode.artifact.repository import (
    ALLOWED,
    ARTIFACT_FILE,
    NAME,
    SUFFIX,
    VERSION,
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
from evalmode.errors import ArtifactInvalid, NameInvalid, UsageError

ACCEPTED = f"<name>/<version>/{ARTIFACT_FILE}, no <version>/{ARTIFACT_FILE} and no single *{SUFFIX} file"
ONLY_VERSION = 1  # of a file that is in no version's folder


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


def recognise(path: Path, model_name: str = "", follow: Sequence[str] = ()) -> Layout:
    """Recognise the layout of the models in a folder, or of a file.

    The first of these applies:

    1. an ONNX file: one model in one version;
    2. a folder with ``<name>/<version>/model.onnx``: a model repository;
    3. a folder with ``<version>/model.onnx``: one model, named by the folder;
    4. a folder with ``model.onnx`` or, without that, exactly one ONNX file: one model in one version.

    A single file is version 1 of a model that is named by the file. A file ``model.onnx`` is named by its folder; in
    the folder of a version, such as ``pets/3/model.onnx``, it has the name and the version of its folders.

    Args:
        path: The folder or the file. It may be a link.
        model_name: The name of the only model, "" to name it by the folder or the file.
        follow: Folders outside ``path`` that symbolic links may lead into.

    Returns:
        The layout. If nothing is recognised, an empty model repository: ``explain_missing`` says why.

    Raises:
        ArtifactInvalid: The folder holds ``model.onnx`` beside versions, or several ONNX files of other names.
        NameInvalid: ``model_name`` is not allowed, or without it the folder or the file is not named like a model.
        UsageError: ``model_name`` is set and the folder holds models by name, or a folder of ``follow`` is none.
    """
    for folder in follow:
        if not Path(folder).is_dir():
            raise UsageError(f"--follow-links {folder}: no such folder; '--follow-links /' allows every folder")
    allowed = tuple(map(Path, follow))
    if path.suffix == SUFFIX and is_file(path):
        return OneFile(path, path, *_name_file(path, model_name), allowed)
    if names := list_names(path):
        if model_name:
            raise UsageError(
                f"--model-name {model_name} names the only model of a folder or a file, but {path} holds models by "
                f"name: {', '.join(names)}"
            )
        return NamedModels(path, allowed)
    file, versions = _find_only_file(path), list_version_folders(path)
    if versions:
        _refuse_both(path, versions)
        return OneModel(path, _choose_name(_find_base(path), model_name), allowed)
    if file:
        return OneFile(path, file, *_name_file(file, model_name), allowed)
    return NamedModels(path, allowed)


def check_repository(path: Path) -> None:
    """Check that a folder can hold models by name, because versions are written to ``<name>/<version>``.

    Args:
        path: The folder; it may be missing.

    Raises:
        UsageError: It is the folder of one model.
    """
    if list_version_folders(path) and not list_names(path):
        folder = _find_base(path)
        raise UsageError(
            f"{path} holds the versions of one model: use --repository {folder.parent} and the model's name "
            f"{folder.name}"
        )


def _find_only_file(folder: Path) -> Path | None:
    """Return ``model.onnx`` in a folder, or its only ONNX file; None if there is none.

    Raises:
        ArtifactInvalid: There are several.
    """
    files = list_onnx_files(folder)
    if folder / ARTIFACT_FILE in files:
        return folder / ARTIFACT_FILE
    if len(files) > 1 and not list_version_folders(folder):
        names = ", ".join(path.name for path in files[:MAX_SHOWN])
        raise ArtifactInvalid(
            f"{folder} holds {len(files)} ONNX files, such as {names}, and none is {ARTIFACT_FILE}: name one of them, "
            f"such as --repository {files[0]}"
        )
    return files[0] if files else None


def _refuse_both(folder: Path, versions: list[int]) -> None:
    """Refuse a folder with both versions and ``model.onnx``."""
    file = folder / ARTIFACT_FILE
    if is_file(file):
        raise ArtifactInvalid(
            f"{folder} holds {ARTIFACT_FILE} beside version {versions[-1]} of a model: remove one of them, or name "
            f"the file: --repository {file}"
        )


def _name_file(file: Path, model_name: str) -> tuple[str, int]:
    """Return the name and the version of a single file."""
    base = _find_base(file)
    if base.name != ARTIFACT_FILE:
        return _choose_name(base.with_suffix(""), model_name), ONLY_VERSION
    folder = base.parent
    if VERSION.fullmatch(folder.name):
        return _choose_name(folder.parent, model_name), int(folder.name)
    return _choose_name(folder, model_name), ONLY_VERSION


def _find_base(path: Path) -> Path:
    """Return a path with the name that the user gave it: absolute, links are not followed."""
    return Path(os.path.normpath(path.absolute()))


def _choose_name(path: Path, model_name: str) -> str:
    """Return the name of the only model.

    Raises:
        NameInvalid: It is not allowed.
    """
    if not model_name and not NAME.fullmatch(path.name):
        raise NameInvalid(f"{path.name!r} is not the name of a model: set --model-name, {ALLOWED}")
    return check_name(model_name or path.name)


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
