"""The model repository: a folder ``<name>/<version>/model.onnx``, and publishing into it atomically."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from serving.errors import ArtifactInvalid, NameInvalid
from serving.files import check_writable, find_existing, naming

ARTIFACT_FILE = "model.onnx"
WITHDRAWN = ".withdrawn-"  # before the number of a version that was taken back
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALLOWED = "use up to 128 letters, digits, '.', '_' and '-', no such sign first"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_SUFFIX = ".onnx"
SHOWN = 3  # of what is in the way, in a message
MAX_STEPS = 1000  # through links: the system itself follows 40


def check_name(name: str) -> str:
    """Return a model name that is safe as a folder.

    Raises:
        NameInvalid: anything but letters, digits, ``.``, ``_`` and ``-``, or a first character that is none of the
            first two.
    """
    if not _NAME.fullmatch(name):
        raise NameInvalid(f"model name {name!r} is not allowed: {_ALLOWED}")
    return name


def list_names(repository: Path) -> list[str]:
    """The names of the models in a repository that have a version, sorted; none where it cannot be read."""
    return sorted(folder.name for folder in _list(repository) if list_versions(repository, folder.name))


def list_versions(repository: Path, name: str) -> list[int]:
    """The versions of one model, ascending; what is no positive integer or holds no artifact is no version.

    A name that no model may have has none: it cannot lead out of the repository. ``find_strays`` says what is left out.
    """
    if not _NAME.fullmatch(name):
        return []
    folders = (folder for folder in _list(repository / name) if _VERSION.fullmatch(folder.name))
    return sorted(int(folder.name) for folder in folders if _is_file(folder / ARTIFACT_FILE))


def find_strays(repository: Path) -> dict[str, str]:
    """What looks like a model and is none: the reasons by path, hidden files left out."""
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
    """Why a repository has no version of any model, or of one.

    Args:
        repository: The folder.
        name: The model's; "" for any.
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
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    wanted = f"<version>/{ARTIFACT_FILE}" if name else f"<name>/<version>/{ARTIFACT_FILE}"
    return f"{repository / name} holds no {wanted}" + (f" ({'; '.join(found[:SHOWN])}{more})" if found else "")


def find_artifact(repository: Path, name: str, version: int, follow_links: bool = False) -> Path:
    """Where a version's artifact lies, by the path of the repository as it was given.

    Args:
        repository: The folder.
        name: The model's.
        version: Its version.
        follow_links: Whether symbolic links may lead out of the repository.

    Raises:
        NameInvalid: see ``check_name``.
        ArtifactInvalid: it is not there, or a symbolic link leads out of the repository.
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
    """The symbolic link by which a path in a repository leads out of it.

    Folders are compared by what the system says they are, not by name: seen through another process's root
    (/proc/PID/root) or a mount, a resolved path is another place.
    """
    home = repository.stat()
    place, depth, link = repository, 0, repository
    ahead = [*path.relative_to(repository).parts][::-1]
    for _ in range(MAX_STEPS):
        if not ahead:
            return link if depth < 0 else None
        part = ahead.pop()
        place = place / part  # of an absolute link "/", which starts anew
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
    """What is in a folder; nothing where it cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    """Whether there is a file; not where that cannot be known."""
    try:
        return path.is_file()
    except OSError:
        return False


def _why_unreadable(folder: Path) -> str:
    """Why a folder cannot be read; "" where it can, or is none."""
    try:
        if folder.is_dir():
            next(folder.iterdir(), folder).lstat()
    except FileNotFoundError:  # gone meanwhile
        return ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _explain_stray(path: Path) -> str:
    """Why something in a model's folder is no version of it; "" where it is one, or nothing that looks like one."""
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
    others = ", ".join(sorted(one.name for one in _list(path))[:SHOWN])
    return f"holds no {ARTIFACT_FILE}" + (f", but {others}" if others else "")


def check_publishable(repository: Path, name: str) -> None:
    """Find out early whether ``publish`` could write: what is to be published may take long to make.

    Args:
        repository: It may be missing.
        name: The model's.

    Raises:
        NameInvalid: see ``check_name``.
        OSError: a folder cannot be written into; names it.
    """
    for place in (repository, repository / check_name(name)):
        check_writable(find_existing(place))


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
    incoming = repository / f".incoming-{secrets.token_hex(8)}"
    try:
        incoming.mkdir(0o700)
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
        why = f"{repository / name} has only version {newest}" if newest else explain_missing(repository, name)
        raise ArtifactInvalid(f"{why}: there is nothing to go back to")
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
