"""``evalmode rollback``: withdraw the newest version of a model."""

from __future__ import annotations

from pathlib import Path

import click

from evalmode.artifact.publishing import withdraw
from evalmode.cli.output import Output, output_options


@click.command()
@click.argument("name")
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="model repository")
@output_options
def rollback(name: str, repository: Path, output: Output) -> None:
    """Withdraw the newest version of the model NAME: servers of the repository return to the version before it.

    The version's folder is renamed to .withdrawn-N, and its number is not used again. Rename the folder back to serve
    the version after all.
    """
    withdrawn, newest, kept = withdraw(repository, name)
    output.say(f"{name}/{withdrawn} is withdrawn and kept in {kept}, the newest is {name}/{newest}")
    output.finish({"name": name, "withdrawn": str(withdrawn), "newest": str(newest), "kept": str(kept)})
