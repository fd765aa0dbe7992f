"""Errors as one line each: what is wrong, and what to do."""

from __future__ import annotations

import errno
import re
import traceback
from importlib.metadata import packages_distributions, requires

import click

from evalmode.errors import EvalmodeError

PACKAGES = {  # distributions whose packages have another name
    "PIL": "pillow",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "prometheus_client": "prometheus-client",
    "pygrpc_native": "pygrpc-native",
    "pythonjsonlogger": "python-json-logger",
    "sklearn": "scikit-learn",
}
OWN_PACKAGES = ("__main__", "evalmode", "serving", "training")
NO_THREAD = "can't start new thread"  # the message of Python's RuntimeError
ADVICE = {  # by the name of the error number
    "ENOSPC": "free some space or choose another place",
    "EDQUOT": "free some space or choose another place",
    "EFBIG": "choose a place that allows larger files",
    "EROFS": "choose a place that can be written to",
    "EACCES": "choose a place that this user may use, or change its permissions",
    "EPERM": "choose a place that this user may use, or change its permissions",
    "ENOENT": "check the path",
    "ENOTDIR": "check the path: a part of it is not a folder",
    "EISDIR": "check the path: it is a folder",
    "ENAMETOOLONG": "choose a shorter name",
    "ELOOP": "its symbolic links form a loop",
    "EMFILE": "raise the limit on open files",
    "EPIPE": "the process that reads it has ended",
    "EIO": "check the disk or the mount",
}


def explain(error: Exception, command: str, extra: str) -> tuple[str, int]:
    """Describe an error of a command in one line.

    Args:
        error: The error.
        command: The command's name; "" if it is unknown.
        extra: The extra that the command needs; "" if it needs none.

    Returns:
        The line, and the exit code.

    Raises:
        Exception: The error itself, if nothing is known that a user could do about it.
    """
    match error:
        case EvalmodeError():
            return str(error), error.exit_code
        case _ if broken := _find_broken(error):
            return _describe_broken(broken, error), 2
        case ModuleNotFoundError() if error.name:
            return _describe_missing(error.name.partition(".")[0], command, extra), 2
        case OSError():
            return describe_os_error(error), 2
        case MemoryError():
            return "there is not enough memory", 2
        case RuntimeError() if str(error) == NO_THREAD:
            return f"{error}: raise the limit on processes or memory", 2
        case _:
            raise error


def describe_os_error(error: OSError) -> str:
    """The file, what is wrong with it, and what to do."""
    place = f"{click.format_filename(error.filename)}: " if error.filename is not None else ""
    todo = ADVICE.get(errno.errorcode.get(error.errno or 0, ""), "")
    return f"{place}{error.strerror or error}" + (f": {todo}" if todo else "")


def _describe_missing(package: str, command: str, extra: str) -> str:
    """The missing package, and how to install it."""
    if extra and _is_dependency(package):
        return f"{command} needs the Python package {package!r}: pip install 'evalmode[{extra}]'"
    return f"the Python package {package!r} is not installed; it is not a dependency of evalmode: install it"


def _find_broken(error: Exception) -> str:
    """The name of a package that is installed but cannot be imported; "" for any other error.

    A shared library may be missing, or the package may be built for another version of Python or numpy. The types of
    these errors differ.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    names = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    package = next((name for name in reversed(names) if name not in OWN_PACKAGES), "")
    if not isinstance(error, ImportError):
        return package if _is_dependency(package) else ""
    named = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError):
        return package if package == named else ""  # it lacks a part of itself, rather than another package
    return package or (named if named not in OWN_PACKAGES else "")


def _describe_broken(package: str, error: Exception) -> str:
    """Why a package cannot be imported, by the first error in the chain, and what to do."""
    first: BaseException = error
    while isinstance(cause := first.__cause__ or first.__context__, ImportError):
        first = cause
    reason = next((line.strip() for line in str(first).splitlines() if line.strip()), type(first).__name__)
    line = f"the Python package {package!r} is installed and cannot be imported: {reason}"
    if not _is_dependency(package):
        return line
    name = PACKAGES.get(package) or packages_distributions().get(package, [package])[0]  # such as onnxruntime-gpu
    return f"{line}. Install it again: pip install --force-reinstall {name}"


def _is_dependency(package: str) -> bool:
    """Whether a package is a dependency of evalmode, with any of its extras."""
    dependencies = {re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in requires("evalmode") or ()}
    return PACKAGES.get(package, package) in dependencies
