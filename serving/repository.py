"""The model repository: a folder ``<name>/<version>/model.onnx``, and publishing into it atomically."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from serving.errors import ArtifactInvalid, NameInvalid
from serving.files import naming

ARTIFACT_FILE = "model.onnx"
WITHDRAWN = ".withdrawn-"  # before the number of a version that was taken back
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def check_name(name: str) -> str:
    """Return a model name that is safe as a folder.

    Raises:
        NameInvalid: anything but letters, digits, ``.``, ``_`` and ``-``, or a first character that is none of the
            first two.
    """
    if not _NAME.fullmatch(name):
        raise NameInvalid(
            f"model name {name!r} is not allowed: use up to 128 letters, digits, '.', '_' and '-', no such sign first"
        )
    return name


def list_names(repository: Path) -> list[str]:
    """The names of the models in a repository that have a version, sorted; none where there is no such folder."""
    folders = repository.iterdir() if repository.is_dir() else []
    return sorted(folder.name for folder in folders if list_versions(repository, folder.name))


def list_versions(repository: Path, name: str) -> list[int]:
    """The versions of one model, ascending; what is no positive integer or holds no artifact is no version.

    A name that no model may have has none: it cannot lead out of the repository.
    """
    if not _NAME.fullmatch(name):
        return []
    folders = (folder for folder in (repository / name).glob("*") if _VERSION.fullmatch(folder.name))
    return sorted(int(folder.name) for folder in folders if (folder / ARTIFACT_FILE).is_file())


def find_artifact(repository: Path, name: str, version: int) -> Path:
    """Where a version's artifact lies.

    Raises:
        NameInvalid: see ``check_name``.
        ArtifactInvalid: it is not there, or a symbolic link leads out of the repository.
    """
    path = repository / check_name(name) / str(version) / ARTIFACT_FILE
    if not path.is_file():
        known = ", ".join(map(str, list_versions(repository, name))) or "none"
        raise ArtifactInvalid(f"{path} is not there; versions of {name}: {known}")
    real = path.resolve()
    if not real.is_relative_to(repository.resolve()):
        raise ArtifactInvalid(f"{path} is a link to {real}, outside the repository: publish a copy of it")
    return real


def publish(repository: Path, name: str, artifact: bytes) -> Path:
    """Publish an artifact as the next version of a model: written beside, synced, then renamed into place.

    A reader sees the whole version or none of it, whenever this process dies.

    Returns:
        The path of the published artifact.

    Raises:
        NameInvalid: see ``check_name``.
    """
    model_folder = repository / check_name(name)
    repository.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=repository))
    try:
        with naming(repository), (incoming / ARTIFACT_FILE).open("wb") as file:
            file.write(artifact)
            file.flush()
            os.fsync(file.fileno())
        # The server may run as another user, whatever this one's umask.
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


def withdraw(repository: Path, name: str) -> tuple[int, int]:
    """Take back the newest version of a model, by one rename; its file stays beside the others, as ``.withdrawn-N``.

    Returns:
        The version that was taken back, and the newest that is left.

    Raises:
        NameInvalid: see ``check_name``.
        ArtifactInvalid: there is no version to go back to.
    """
    *_, left, newest = (0, 0, *list_versions(repository, check_name(name)))
    if not left:
        has = f"only version {newest}" if newest else "no version"
        raise ArtifactInvalid(f"{repository / name} has {has}: there is nothing to go back to")
    folder = repository / name
    (folder / str(newest)).rename(folder / f"{WITHDRAWN}{newest}")
    _sync_folder(folder)
    return newest, left


def _claim_version(incoming: Path, model_folder: Path) -> Path:
    """Rename into the next free number, never one that was withdrawn; another publisher may take it first."""
    names = (folder.name.removeprefix(WITHDRAWN) for folder in model_folder.iterdir())
    number = max((int(name) for name in names if _VERSION.fullmatch(name)), default=0) + 1
    while True:
        try:
            return incoming.rename(model_folder / str(number))
        except OSError:
            if not (model_folder / str(number)).exists():
                raise
            number += 1


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
