"""``evalmode rollback``: take back the newest version of a model."""

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
    """Take back the newest version of the model NAME: servers of the repository go back to the one before.

    The version is renamed to .withdrawn-N, its number is not given again; rename it back to serve it after all.
    """
    withdrawn, newest = withdraw(repository, name)
    output.say(f"{name}/{withdrawn} is withdrawn, the newest is {name}/{newest}")
    output.finish({"name": name, "withdrawn": str(withdrawn), "newest": str(newest)})
