"""``evalmode``: the one console script. Each command's module is imported when it is asked for."""

from __future__ import annotations

import errno
import importlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import packages_distributions, requires
from types import FrameType
from typing import Any

import click

from serving import __version__
from serving.commands.streams import discard_output, open_streams
from serving.errors import EvalmodeError

# Command -> where it is, and the extra it needs. Training is named here by a string, and imported by nobody.
COMMANDS = {
    "quickstart": ("training.commands.quickstart:quickstart", "serve,train"),
    "train": ("training.commands.train:train", "serve,train"),
    "export": ("training.commands.export:export", "serve,train"),
    "report": ("training.commands.train:report", "serve,train"),
    "check": ("serving.commands.check:check", "serve"),
    "certify": ("serving.commands.certify:certify", "serve"),
    "compare": ("serving.commands.compare:compare", "serve"),
    "serve": ("serving.commands.serve:serve", "serve"),
    "predict": ("serving.commands.predict:predict", "serve"),
    "rollback": ("serving.commands.rollback:rollback", ""),
    "bench": ("serving.commands.bench:bench", "serve"),
}
PACKAGES = {  # where a package is imported by another name than it is installed
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
OWN = ("__main__", "serving", "training")
AGAIN_S = 0.01
NO_THREAD = "can't start new thread"  # in Python's words
ADVICE = {  # by the name of an error of the operating system
    "ENOSPC": "free some space or choose another place",
    "EDQUOT": "free some space or choose another place",
    "EFBIG": "choose a place that takes larger files",
    "EROFS": "choose a place that can be written to",
    "EACCES": "choose a place that this user may use, or change its permissions",
    "EPERM": "choose a place that this user may use, or change its permissions",
    "ENOENT": "check the path",
    "ENOTDIR": "check the path, what is there is no folder",
    "EISDIR": "check the path, what is there is a folder",
    "ENAMETOOLONG": "choose a shorter name",
    "ELOOP": "its links lead in a circle",
    "EMFILE": "raise the limit on open files",
    "EPIPE": "what should read it has ended",
    "EIO": "is the disk, or what is mounted there, in order?",
}


class _Interrupted(Exception):
    """Ctrl-C: click would print an empty line and exit with 1."""


class _LazyGroup(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0].lower(), COMMANDS, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"No such command {args[0]!r}: {meant}", ctx)
        return super().resolve_command(ctx, args)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _no_abort():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _no_abort():
            return super().invoke(ctx)


@contextmanager
def _no_abort() -> Iterator[None]:
    """Keep click from what it does about interrupts and broken pipes: it would exit with 1 and say nothing."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise _Interrupted from error
    except BrokenPipeError as error:
        raise EvalmodeError(_describe(error)) from error  # of another pipe than standard output


@click.group(cls=_LazyGroup, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Train a CNN image classifier, export it in eval mode to one ONNX file, serve it over gRPC.

    Every option can be given as an environment variable: EVALMODE_SERVE_PORT is serve's --port.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: of the command line; its own if there are none.

    Raises:
        KeyboardInterrupt: it was interrupted, whatever became of that on the way.
    """
    given = sys.argv[1:] if arguments is None else arguments
    interrupts = _count_interrupts()
    output = open_streams()
    try:
        code = cli.main(given, prog_name="evalmode", auto_envvar_prefix="EVALMODE", standalone_mode=False)
    except click.ClickException as error:
        error.show(sys.stderr)
        code = error.exit_code
    except SystemExit as ended:
        code = ended.code
    except _Interrupted as error:
        raise KeyboardInterrupt from error
    except Exception as error:
        if interrupts:  # some libraries turn it into an error of theirs
            raise KeyboardInterrupt from error
        code = _complain(error, next((name for name in given if name in COMMANDS), ""))
    try:
        if not output.failed:
            sys.stdout.flush()
    except OSError as error:
        code = _complain(error, "")
    if output.failed:
        discard_output()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to do, and Python would end with a traceback
    sys.exit(code if isinstance(code, int) else 0)


def _count_interrupts() -> list[int]:
    """Interrupts from here on, where they are not ignored, as with nohup."""
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = _interrupt_again
    return interrupts


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """See ``sys.unraisablehook``: an interrupt that came in a destructor, say, would be printed and forgotten."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        thread = threading.main_thread().ident
        threading.Timer(AGAIN_S, signal.pthread_kill, (thread, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _complain(error: Exception, command: str) -> int:
    """Say what is wrong in one line; the exit code.

    Raises:
        Exception: the error, where nothing is known that a user could do about it.
    """
    code = 2
    match error:
        case EvalmodeError():
            line, code = str(error), error.exit_code
        case _ if broken := _find_broken(error):
            line = _say_broken(broken, error)
        case ModuleNotFoundError() if error.name:
            line = _ask_for(error.name.partition(".")[0], command)
        case OSError():
            line = _describe(error)
        case MemoryError():
            line = "there is not enough memory"
        case RuntimeError() if str(error) == NO_THREAD:
            line = f"{error}: raise the limit on processes or memory"
        case _:
            raise error
    click.echo(f"evalmode: {line}", err=True)
    return code


def _describe(error: OSError) -> str:
    """Which file it is of, what is wrong, and what to do."""
    place = f"{click.format_filename(error.filename)}: " if error.filename is not None else ""
    todo = ADVICE.get(errno.errorcode.get(error.errno or 0, ""), "")
    return f"{place}{error.strerror or error}" + (f": {todo}" if todo else "")


def _ask_for(package: str, command: str) -> str:
    """Which package is missing, and how it is installed."""
    if command and _is_dependency(package):
        return f"{command} needs the Python package {package!r}: pip install 'evalmode[{COMMANDS[command][1]}]'"
    return f"the Python package {package!r} is not installed; it is not a dependency of evalmode: install it"


def _find_broken(error: Exception) -> str:
    """The package that is installed and cannot be imported; "" where the error is another.

    A library that it links to is missing, or it was built for another Python or numpy: each raises something else.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    names = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    package = next((name for name in reversed(names) if name not in OWN), "")
    if not isinstance(error, ImportError):
        return package if _is_dependency(package) else ""
    named = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError):
        return package if package == named else ""  # it lacks a part of itself, not another package
    return package or (named if named not in OWN else "")


def _say_broken(package: str, error: Exception) -> str:
    """Why a package cannot be imported, by the first of its errors, and what to do."""
    first: BaseException = error
    while isinstance(cause := first.__cause__ or first.__context__, ImportError):
        first = cause
    said = next((line.strip() for line in str(first).splitlines() if line.strip()), type(first).__name__)
    line = f"the Python package {package!r} is installed and cannot be imported: {said}"
    if not _is_dependency(package):
        return line
    name = PACKAGES.get(package) or packages_distributions().get(package, [package])[0]  # onnxruntime-gpu, perhaps
    return f"{line}. Install it again: pip install --force-reinstall {name}"


def _is_dependency(package: str) -> bool:
    """Whether evalmode brings a package, with some of its extras."""
    ours = {re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in requires("evalmode") or ()}
    return PACKAGES.get(package, package) in ours
