"""``evalmode``: the one console script. Each command's module is imported when it is asked for."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from serving import __version__
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
NO_THREAD = "can't start new thread"  # in Python's words


class _LazyGroup(click.Group):
    """Imports a command when it is asked for, and turns what went wrong into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EvalmodeError as error:
            click.echo(f"evalmode: {error}", err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            command = ctx.invoked_subcommand or ""
            extra = COMMANDS[command][1]
            click.echo(
                f"evalmode: {command} needs the Python package {error.name!r}: pip install 'evalmode[{extra}]'",
                err=True,
            )
            ctx.exit(2)
        except RuntimeError as error:
            if str(error) != NO_THREAD:
                raise
            click.echo(f"evalmode: {error}: raise the limit on processes or memory", err=True)
            ctx.exit(2)
        except BrokenPipeError:  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(0)


@click.group(cls=_LazyGroup, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Train a CNN image classifier, export it in eval mode to one ONNX file, serve it over gRPC.

    Every option can be given as an environment variable: EVALMODE_SERVE_PORT is serve's --port.
    """


def main(arguments: list[str] | None = None) -> None:
    """The console script's entry point; without arguments, the command line's."""
    cli(arguments, prog_name="evalmode", auto_envvar_prefix="EVALMODE")
