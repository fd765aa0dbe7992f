"""The model repository: a folder ``<name>/<version>/model.onnx`` that versions are published into atomically."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from evalmode.errors import ArtifactInvalid, NameInvalid
from evalmode.files import check_writable, find_existing, naming

ARTIFACT_FILE = "model.onnx"
WITHDRAWN = ".withdrawn-"  # the prefix of a version that was rolled back
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALLOWED = "use up to 128 letters, digits, '.', '_' and '-', the first a letter or digit"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_SUFFIX = ".onnx"
MAX_SHOWN = 3  # paths that a message names
MAX_STEPS = 1000  # steps through symbolic links: the system itself follows 40 links


def check_name(name: str) -> str:
    """Return a model name if it is safe as the name of a folder.

    Raises:
        NameInvalid: It contains characters other than letters, digits, ``.``, ``_`` and ``-``, or does not start with
            a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise NameInvalid(f"model name {name!r} is not allowed: {_ALLOWED}")
    return name


def list_names(repository: Path) -> list[str]:
    """Return the names of the models that have at least one version, sorted; empty if the folder cannot be read."""
    return sorted(folder.name for folder in _list(repository) if list_versions(repository, folder.name))


def list_versions(repository: Path, name: str) -> list[int]:
    """Return the versions of a model, ascending.

    A version is a folder that is named by a positive integer and contains an artifact. ``find_strays`` returns what is
    left out.

    Args:
        repository: The folder of the model repository.
        name: The model's name. A name that is not allowed has no versions, so that it cannot lead out of the folder.
    """
    if not _NAME.fullmatch(name):
        return []
    folders = (folder for folder in _list(repository / name) if _VERSION.fullmatch(folder.name))
    return sorted(int(folder.name) for folder in folders if _is_file(folder / ARTIFACT_FILE))


def find_strays(repository: Path) -> dict[str, str]:
    """Find files and folders that look like a model or a version but are not; hidden ones are skipped.

    Returns:
        The reasons, by path.
    """
    strays: dict[str, str] = {}
    for folder in sorted(_list(repository)):
        if folder.name.startswith("."):
            continue
        if folder.suffix == _SUFFIX and _is_file(folder):
            strays[str(folder)] = f"is not a model: a model is <name>/<version>/{ARTIFACT_FILE}"
        elif why := _why_unreadable(folder):
            strays[str(folder)] = why
        elif _NAME.fullmatch(folder.name):
            strays |= {str(path): why for path in sorted(_list(folder)) if (why := _explain_stray(path))}
        elif any(_is_file(path / ARTIFACT_FILE) for path in _list(folder)):
            strays[str(folder)] = f"is not the name of a model: {_ALLOWED}"
    return strays


def explain_missing(repository: Path, name: str = "") -> str:
    """Explain why a repository has no version of a model, or of any model.

    Args:
        repository: The folder of the model repository.
        name: The model's name, or "" for any model.
    """
    if name and not _NAME.fullmatch(name):
        return f"{name!r} is not the name of a model: {_ALLOWED}"
    for folder in (repository, repository / name):
        if why := _why_unreadable(folder):
            return f"{folder} {why}"
        if folder.is_symlink() and not folder.exists():
            return f"{folder} is a link to {folder.readlink()}, which does not exist"
        if not folder.is_dir():
            return f"{folder} {'is a file, not a folder' if folder.exists() else 'does not exist'}"
    strays = find_strays(repository)
    found = [f"{path} {why}" for path, why in strays.items() if Path(path).is_relative_to(repository / name)]
    more = f", and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
    wanted = f"<version>/{ARTIFACT_FILE}" if name else f"<name>/<version>/{ARTIFACT_FILE}"
    return f"{repository / name} holds no {wanted}" + (f" ({'; '.join(found[:MAX_SHOWN])}{more})" if found else "")


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
    if not _is_file(path):
        known = ", ".join(map(str, list_versions(repository, name))) or "none"
        raise ArtifactInvalid(f"{path} is not there; versions of {name}: {known}")
    if not follow_links and (link := _find_link_out(repository, path)):
        raise ArtifactInvalid(
            f"{path} is outside the repository: {link} is a link to {link.readlink()}; publish a copy, or serve with "
            "--follow-links"
        )
    return path


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


def _list(folder: Path) -> list[Path]:
    """Return the content of a folder; empty if it cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    """Return whether a path is a file; False if that is unknown."""
    try:
        return path.is_file()
    except OSError:
        return False


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


def _explain_stray(path: Path) -> str:
    """Explain why a path in a model's folder is not a version; "" if it is one, or does not look like one."""
    if path.name.startswith("."):
        return ""
    if path.suffix == _SUFFIX and _is_file(path):
        return f"is not a version: a version is a folder with {ARTIFACT_FILE}, such as 1"
    if why := _why_unreadable(path):
        return why
    if not _VERSION.fullmatch(path.name):
        wrong = "is not a version: a version is a whole number from 1 on, up to nine digits, without leading zeros"
        return wrong if _is_file(path / ARTIFACT_FILE) else ""
    artifact = path / ARTIFACT_FILE
    if not path.is_dir() or _is_file(artifact):
        return ""
    if artifact.is_symlink():
        return f"holds {ARTIFACT_FILE} as a link to {artifact.readlink()}, which does not exist"
    others = ", ".join(sorted(one.name for one in _list(path))[:MAX_SHOWN])
    return f"holds no {ARTIFACT_FILE}" + (f", but {others}" if others else "")


def check_publishable(repository: Path, name: str) -> None:
    """Check that ``publish`` will be able to write, before an artifact is made at length.

    Args:
        repository: The folder of the model repository; it may be missing.
        name: The model's name.

    Raises:
        NameInvalid: The name is not allowed, see ``check_name``.
        OSError: A folder is not writable; the error names it.
    """
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
    """
    model_folder = repository / check_name(name)
    repository.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=repository))
    try:
        with naming(repository), (incoming / ARTIFACT_FILE).open("wb") as file:
            file.write(artifact)
            file.flush()
            os.fsync(file.fileno())
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


def withdraw(repository: Path, name: str) -> tuple[int, int]:
    """Roll back the newest version of a model. Its folder is renamed to ``.withdrawn-N`` and kept.

    Args:
        repository: The folder of the model repository.
        name: The model's name.

    Returns:
        The version that was rolled back, and the newest remaining one.

    Raises:
        NameInvalid: The name is not allowed, see ``check_name``.
        ArtifactInvalid: There is no earlier version.
    """
    *_, left, newest = (0, 0, *list_versions(repository, check_name(name)))
    if not left:
        why = f"{repository / name} has only version {newest}" if newest else explain_missing(repository, name)
        raise ArtifactInvalid(f"{why}: there is nothing to go back to")
    folder = repository / name
    (folder / str(newest)).rename(folder / f"{WITHDRAWN}{newest}")
    _sync_folder(folder)
    return newest, left


def _claim_version(incoming: Path, model_folder: Path) -> Path:
    """Rename a folder to the next free version; numbers of withdrawn versions are not used again."""
    names = (folder.name.removeprefix(WITHDRAWN) for folder in model_folder.iterdir())
    number = max((int(name) for name in names if _VERSION.fullmatch(name)), default=0) + 1
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
