"""Errors in the code of a user's network, described in one line."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gaierror
from types import FrameType
from urllib.error import URLError

import torch

from evalmode.errors import EvalmodeError
from training.errors import NetworkError

_TRAINING = Path(__file__).parents[1]
_PACKAGES = tuple(f"{_TRAINING.with_name(name)}/" for name in ("evalmode", "serving", "training"))


def explain(error: BaseException) -> str:
    """Describe an error that the user's code raised, in one line.

    Args:
        error: The error.

    Returns:
        Its message and place; for frequent causes also what to do.
    """
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"No module named {error.name!r}: install it, or check the spelling; your own modules are also searched in "
            "the working directory"
        )
    if any(isinstance(cause, URLError | ConnectionError | TimeoutError | gaierror) for cause in list_causes(error)):
        return (
            f"a download failed ({message or type(error).__name__}): without a network connection, put the weights "
            f"into {torch.hub.get_dir()}/checkpoints first"
        )
    where = _find_line(error)
    described = f"{type(error).__name__}{f': {message}' if message else ''}{f' ({where})' if where else ''}"
    if package := _find_broken_package(error):
        described = f"the Python package {package!r} cannot be imported: {described}"
        if package.startswith("torch"):
            described += f"; was it built for another torch than {torch.__version__}? Install the release that fits"
    return described


def list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the error that caused it, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


@contextmanager
def explain_errors(name: str, where: str) -> Iterator[None]:
    """Turn every exception of a user's network into a `NetworkError` of one line; other exceptions pass.

    Args:
        name: The name of the network.
        where: Where it fails, in words to put after "fails".

    Raises:
        NetworkError: The code of the network, or a package that it calls, raised an exception.
    """
    try:
        yield
    except (EvalmodeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if ":" not in name or not _is_of_network(error):
            raise
        raise NetworkError(f"--network {name} fails {where}: {explain(error)}") from error


def _is_of_network(error: BaseException) -> bool:
    """Whether the user's code raised an error, or a package such as torch that runs the network."""
    if _find_line(error):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]  # a network may consist of torch's own modules
    return isinstance(error, Exception) and not isinstance(error, OSError) and not last.filename.startswith(_PACKAGES)


def _find_broken_package(error: BaseException) -> str:
    """Return the package whose import by the user's code failed, such as torchvision; "" for any other error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    imported = [_name_package(frame) for frame in frames if frame.f_code.co_name == "<module>"]
    own = [_name_package(frame) for frame in frames if _is_own(frame.f_code.co_filename)]
    return imported[-1] if imported and imported[-1] not in own[:1] else ""


def _name_package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _find_line(error: BaseException) -> str:
    """Return the file and line of the user's code that raised an error; "" if another package raised it."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""


def _is_own(path: str) -> bool:
    """Whether a file is the user's: not evalmode's, not Python's, and not installed."""
    installed = {sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")}
    return not path.startswith((*installed, *_PACKAGES, "<"))
