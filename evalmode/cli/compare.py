"""``evalmode compare``: what changes for users if one artifact replaces another."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from evalmode.cli.image_limits import image_limit_options
from evalmode.cli.output import Output, output_options
from evalmode.cli.paths import ExistingPath
from evalmode.files import check_replaceable
from evalmode.limits import Limits

if TYPE_CHECKING:
    from evalmode.certification.compare import Comparison

MOST_ROWS = 20


class Share(click.ParamType):  # type: ignore[type-arg]  # generic to the type checker only
    """``2%`` or ``0.02`` as 0.02."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse it.

        Raises:
            click.BadParameter: it is something else.
        """
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is not a share such as 2% or 0.02", param, ctx)
        return share


@click.command()
@click.argument("old", type=ExistingPath(dir_okay=False, path_type=Path))
@click.argument("new", type=ExistingPath(dir_okay=False, path_type=Path))
@click.option(
    "--images",
    type=ExistingPath(file_okay=False, path_type=Path),
    required=True,
    help="folder of <label>/<image>",
)
@click.option("--max-changed", type=Share(), help="exit with 1 if more of the labels change, such as 2%")
@click.option(
    "--page",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    help="HTML file to write, with the pictures",
)
@image_limit_options(Limits())
@output_options
def compare(
    old: Path,
    new: Path,
    images: Path,
    max_changed: float | None,
    page: Path | None,
    max_image_bytes: int,
    max_image_pixels: int,
    output: Output,
) -> None:
    """Say what changes for users if NEW replaces OLD: labels, gains and losses, latency."""
    if page:
        check_replaceable(page)
    from evalmode.certification.compare import compare as compare_models
    from evalmode.runtime.loading import load_model

    comparison = compare_models(load_model(old), load_model(new), images, Limits(max_image_bytes, max_image_pixels))
    for warning in comparison.warnings:
        click.echo(f"evalmode: {warning}", err=True)
    output.say(_describe(comparison))
    if page:
        from evalmode.certification.page import write_page

        write_page(page, comparison, str(old), str(new))
        output.say(f"page      {page}")
    passed = max_changed is None or comparison.share_changed <= max_changed
    facts = asdict(comparison) | {
        "changed": [{**asdict(one), "path": str(one.path)} for one in comparison.changed],
        "share_changed": comparison.share_changed,
        "page": str(page) if page else None,
        "passed": passed,
    }
    output.finish(facts)
    if not passed:
        click.echo(
            f"evalmode: {comparison.share_changed:.2%} of the labels change, --max-changed {max_changed:.2%}", err=True
        )
        sys.exit(1)


def _describe(comparison: Comparison) -> str:
    old, new = comparison.accuracies
    gained, lost = (sum(getattr(label, name) for label in comparison.labels) for name in ("gained", "lost"))
    lines = [
        f"labels    {len(comparison.changed)} of {comparison.images} change ({comparison.share_changed:.2%})",
        f"accuracy  {old:.4f} -> {new:.4f}: {gained} images gained, {lost} lost, McNemar's p {comparison.p:.3g}",
        f"latency   {comparison.latency_ratio:.2f} of the old one's, one image alone",
    ]
    table = Table("label", "images", "gained", "lost", box=None, pad_edge=False)
    uneven = sorted(comparison.labels, key=lambda label: (label.gained - label.lost, -label.lost))
    for label in [label for label in uneven if label.gained or label.lost][:MOST_ROWS]:
        table.add_row(label.label, str(label.images), str(label.gained), str(label.lost))
    if table.row_count:
        console = Console(highlight=False, markup=False, emoji=False)
        with console.capture() as rows:
            console.print(table)
        lines.append(rows.get().rstrip("\n"))
    surest = [f"{one.path}: {one.label}, {one.old} -> {one.new}" for one in comparison.changed[:MOST_ROWS]]
    if len(comparison.changed) > len(surest):
        surest.append(f"... and {len(comparison.changed) - len(surest)} more: --page or --json shows them")
    return "\n".join([*lines, *surest])
