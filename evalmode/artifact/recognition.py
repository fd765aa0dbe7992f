"""Recognises the layout of the models in the folder, or of the file, that a user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from evalmode.artifact.layouts import Layout, NamedModels, OneFile, OneModel
from evalmode.artifact.repository import (
    ALLOWED,
    ARTIFACT_FILE,
    NAME,
    SUFFIX,
    VERSION,
    check_name,
    is_file,
    list_names,
    list_onnx_files,
    list_version_folders,
)
from evalmode.artifact.strays import MAX_SHOWN
from evalmode.errors import ArtifactInvalid, NameInvalid, UsageError

ONLY_VERSION = 1  # of a file that is in no version's folder


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
