"""Describes every command and its options, from the commands themselves."""

from __future__ import annotations

import re

import click

from docs.tables.markdown import draw
from evalmode.cli.main import COMMANDS, cli

ELSEWHERE = {"serve": "[Configuration](configuration.md) has its options."}
NEEDS = {"predict": "The bare install has it; `--file` needs `evalmode[serve]`."}


def show_commands() -> str:
    """Show the usage, the description and the options of each command."""
    return "\n".join(_show_command(name) for name in COMMANDS)


def _show_command(name: str) -> str:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    context = click.Context(command, info_name=f"evalmode {name}", show_default=True)
    usage = command.get_usage(context).removeprefix("Usage: ")
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    rows = [_describe(one, name, context) for one in options]
    head = ("option", "values", "default", "description")
    extra = COMMANDS[name][1]
    needed = NEEDS.get(name) or (f"Needs `evalmode[{extra}]`." if extra else "The bare install has it.")
    return f"## {name}\n\n```\n{usage}\n```\n\n{_join(command.help or '')}\n\n{needed}\n\n" + (
        f"{ELSEWHERE[name]}\n" if name in ELSEWHERE else draw(head, rows)
    )


def _describe(option: click.Option, command: str, context: click.Context) -> tuple[str, str, str, str]:
    """A row of the table: flags with the environment variable, values, default, description."""
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    variable = f"EVALMODE_{command}_{option.name}".upper()
    shown = option.get_help_extra(context)
    default = "required" if option.required else shown.get("default", "off" if option.is_flag else "").strip("()")
    return f"{flags}<br><small>`{variable}`</small>", _list_values(option, context), default, _join(option.help or "")


def _list_values(option: click.Option, context: click.Context) -> str:
    if option.is_flag:
        return "flag"
    if isinstance(option.type, click.Choice):
        return ", ".join(f"`{choice}`" for choice in option.type.choices)
    bounds = option.get_help_extra(context).get("range")
    if bounds:
        return "`" + re.sub("([<>]=?)", r" \1 ", bounds) + "`"
    return "`" + option.metavar.replace("|", r"\|") + "`" if option.metavar else option.type.name


def _join(text: str) -> str:
    """The paragraphs of a help text, each on one line, as Markdown."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).strip().replace("<", "&lt;")
