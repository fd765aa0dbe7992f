"""The command ``evalmode``. The module of a subcommand is imported when the subcommand is used."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType
from typing import Any

import click

from evalmode import __version__
from evalmode.cli.failures import describe_os_error, explain
from evalmode.cli.streams import discard_output, open_streams
from evalmode.errors import EvalmodeError

# Command -> its module and function, and the extra it needs.
COMMANDS = {
    "quickstart": ("evalmode.cli.quickstart:quickstart", "serve,train"),
    "train": ("evalmode.cli.train:train", "serve,train"),
    "export": ("evalmode.cli.export:export", "serve,train"),
    "report": ("evalmode.cli.report:report", "serve,train"),
    "check": ("evalmode.cli.check:check", "serve"),
    "certify": ("evalmode.cli.certify:certify", "serve"),
    "compare": ("evalmode.cli.compare:compare", "serve"),
    "serve": ("evalmode.cli.serve:serve", "serve"),
    "predict": ("evalmode.cli.predict:predict", "serve"),
    "rollback": ("evalmode.cli.rollback:rollback", ""),
    "bench": ("evalmode.cli.bench:bench", "serve"),
}
REPEAT_S = 0.01


class _Interrupted(Exception):
    """An interrupt, in place of KeyboardInterrupt, for which click prints an empty line and exits with 1."""


class _LazyGroup(click.Group):
    """Imports a command when it is used."""

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
            meant = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
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
    """Replace the exceptions for which click exits with 1 and prints nothing: interrupts and broken pipes."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise _Interrupted from error
    except BrokenPipeError as error:
        raise EvalmodeError(describe_os_error(error)) from error  # a pipe other than standard output


@click.group(cls=_LazyGroup, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Train a CNN image classifier, export it in eval mode to one ONNX file, serve it over gRPC.

    Every option can be set by an environment variable: EVALMODE_SERVE_PORT is --port of serve.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit.

    Args:
        arguments: The arguments; by default those of the command line.

    Raises:
        KeyboardInterrupt: The command was interrupted, whatever error followed from that.
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
        if interrupts:  # some libraries raise their own error after an interrupt
            raise KeyboardInterrupt from error
        code = _report(error, next((name for name in given if name in COMMANDS), ""))
    try:
        if not output.failed:
            sys.stdout.flush()
    except OSError as error:
        code = _report(error, "")
    if output.failed:
        discard_output()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the work is done; Python would end with a traceback
    sys.exit(code if isinstance(code, int) else 0)


def _count_interrupts() -> list[int]:
    """A list that grows with each interrupt from now on, unless interrupts are ignored, as under nohup."""
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = _interrupt_again
    return interrupts


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Repeat an interrupt that was raised in a destructor, where Python would print and ignore it.

    Args:
        unraisable: As ``sys.unraisablehook`` is called.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        thread = threading.main_thread().ident
        threading.Timer(REPEAT_S, signal.pthread_kill, (thread, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _report(error: Exception, command: str) -> int:
    """Print an error in one line, and return the exit code."""
    line, code = explain(error, command, COMMANDS[command][1] if command else "")
    click.echo(f"evalmode: {line}", err=True)
    return code
