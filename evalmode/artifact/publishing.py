"""Publishing: new versions of a model are written into a model repository atomically, and rolled back."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from evalmode.artifact.recognition import check_repository
from evalmode.artifact.repository import ARTIFACT_FILE, VERSION, check_name, list_versions
from evalmode.artifact.strays import explain_missing
from evalmode.errors import ArtifactInvalid
from evalmode.files import check_writable, find_existing, naming, write_synced

WITHDRAWN = ".withdrawn-"  # the prefix of a version that was rolled back


def check_publishable(repository: Path, name: str) -> None:
    """Check that ``publish`` will be able to write, before an artifact is made at length.

    Args:
        repository: The folder of the model repository; it may be missing.
        name: The model's name.

    Raises:
        NameInvalid: The name is not allowed, see ``check_name``.
        OSError: A folder is not writable; the error names it.
        UsageError: The folder holds the versions of one model.
    """
    check_repository(repository)
    for place in (repository, repository / check_name(name)):
        check_writable(find_existing(place))


def publish(repository: Path, name: str, artifact: bytes) -> Path:
    """Publish an artifact as the next version of a model.

    The file is written into a temporary folder, synced to disk, and renamed into place. Readers see all of the version
    or nothing, even if this process is killed.

    Args:
        repository: The folder of the model repository; it is created if it is missing.
        name: The model's name.
        artifact: The bytes of ``model.onnx``.

    Returns:
        The path of the published artifact.

    Raises:
        NameInvalid: The name is not allowed, see ``check_name``.
        OSError: The file cannot be written.
        UsageError: The folder holds the versions of one model.
    """
    model_folder = repository / check_name(name)
    check_repository(repository)
    repository.mkdir(parents=True, exist_ok=True)
    incoming = repository / f".incoming-{secrets.token_hex(8)}"
    try:
        incoming.mkdir(0o700)
        with naming(repository):
            write_synced(incoming / ARTIFACT_FILE, artifact)
        # The server may run as another user: the umask of this one must not lock it out.
        (incoming / ARTIFACT_FILE).chmod(0o644)
        incoming.chmod(0o755)
        with suppress(FileExistsError):
            model_folder.mkdir()
            model_folder.chmod(0o755)
        version = _claim_version(incoming, model_folder)
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    _sync_folder(model_folder)
    return version / ARTIFACT_FILE


def withdraw(repository: Path, name: str) -> tuple[int, int, Path]:
    """Roll back the newest version of a model. Its folder is renamed to ``.withdrawn-N`` and kept.

    Args:
        repository: The folder of the model repository.
        name: The model's name.

    Returns:
        The version that was rolled back, the newest remaining one, and the folder that the former is kept in.

    Raises:
        NameInvalid: The name is not allowed, see ``check_name``.
        ArtifactInvalid: There is no earlier version.
        UsageError: The folder holds the versions of one model.
    """
    check_name(name)
    check_repository(repository)
    *_, left, newest = (0, 0, *list_versions(repository, name))
    if not left:
        why = f"{repository / name} has only version {newest}" if newest else explain_missing(repository, name)
        raise ArtifactInvalid(f"{why}: there is no version to roll back to")
    folder = repository / name
    kept = (folder / str(newest)).rename(folder / f"{WITHDRAWN}{newest}")
    _sync_folder(folder)
    return newest, left, kept


def find_next_version(repository: Path, name: str) -> int:
    """Return the number that ``publish`` gives to the next version, unless another publisher takes it first.

    Args:
        repository: The folder of the model repository; it may be missing.
        name: The model's name.

    Raises:
        NameInvalid: The name is not allowed, see ``check_name``.
    """
    return _find_free(repository / check_name(name))


def _find_free(model_folder: Path) -> int:
    """Return the next free version of a model; numbers of withdrawn versions are not used again."""
    names = (
        folder.name.removeprefix(WITHDRAWN) for folder in (model_folder.iterdir() if model_folder.is_dir() else ())
    )
    return max((int(name) for name in names if VERSION.fullmatch(name)), default=0) + 1


def _claim_version(incoming: Path, model_folder: Path) -> Path:
    """Rename a folder to the next free version."""
    number = _find_free(model_folder)
    while True:
        try:
            return incoming.rename(model_folder / str(number))
        except OSError:
            if not (model_folder / str(number)).exists():
                raise
            # Another publisher took the number first.
            number += 1


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
