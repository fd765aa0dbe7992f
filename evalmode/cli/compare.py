"""``evalmode compare``: what changes for users if one artifact replaces another."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from evalmode.artifact.repository import resolve_artifact
from evalmode.cli.image_limits import image_limit_options
from evalmode.cli.output import Output, output_options
from evalmode.cli.paths import ExistingPath
from evalmode.files import check_replaceable
from evalmode.limits import Limits

if TYPE_CHECKING:
    from evalmode.certification.compare import Comparison

MAX_ROWS = 20


class Share(click.ParamType):  # type: ignore[type-arg]  # generic to the type checker only
    """A share of 1: ``2%`` or ``0.02``."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a value.

        Args:
            value: The text, or a number that was parsed before.
            param: The option.
            ctx: The command.

        Returns:
            The share, in 0..1.

        Raises:
            click.BadParameter: the text is not a share.
        """
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            share = float(Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1))  # 0.7% is 7 of 1000
        except ArithmeticError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is not a share such as 2% or 0.02", param, ctx)
        return share


@dataclass(frozen=True)
class CompareOptions:
    """The options of ``evalmode compare``, named as on the command line."""

    images: Path
    max_accuracy_drop: float | None
    max_changed: float | None
    page: Path | None
    max_image_bytes: int
    max_image_pixels: int


@click.command()
@click.argument("old", type=ExistingPath(path_type=Path))
@click.argument("new", type=ExistingPath(path_type=Path))
@click.option(
    "--images",
    type=ExistingPath(path_type=Path),
    required=True,
    help="labelled images: a folder <label>/<image>, or a CSV or JSONL table of files and labels",
)
@click.option(
    "--max-accuracy-drop",
    type=Share(),
    help="exit with 1 if the accuracy falls by more percentage points, such as 1% or 0",
)
@click.option(
    "--max-changed", type=Share(), help="exit with 1 if more predicted labels change, gains and losses, such as 2%"
)
@click.option(
    "--page",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    help="HTML file to write, with the images whose predicted label changes",
)
@image_limit_options(Limits())
@output_options
def compare(old: Path, new: Path, output: Output, **options: Any) -> None:
    """Show what changes for users if NEW replaces OLD: predicted labels, gains and losses, latency.

    OLD and NEW are files, or folders of a model repository: of a version, or of a model, whose newest version is taken.
    """
    chosen = CompareOptions(**options)
    old, new = (resolve_artifact(path).path for path in (old, new))
    if chosen.page:
        check_replaceable(chosen.page)
    from evalmode.certification.compare import compare as compare_models

    limits = Limits(chosen.max_image_bytes, chosen.max_image_pixels)
    comparison = compare_models(old, new, chosen.images, limits)
    for warning in comparison.warnings:
        click.echo(f"evalmode: {warning}", err=True)
    output.say(_describe(comparison))
    if chosen.page:
        from evalmode.certification.page import Compared, write_page

        write_page(chosen.page, comparison, Compared(old, new, chosen.images))
        output.say(f"page      {chosen.page}")
    exceeded = _list_exceeded(comparison, chosen)
    facts = asdict(comparison) | {
        "changed": [{**asdict(one), "path": str(one.path)} for one in comparison.changed],
        "share_changed": comparison.share_changed,
        "accuracy_drop": comparison.accuracy_drop,
        "page": str(chosen.page) if chosen.page else None,
        "passed": not exceeded,
    }
    output.finish(facts)
    for reason in exceeded:
        click.echo(f"evalmode: {reason}", err=True)
    if exceeded:
        sys.exit(1)


def _list_exceeded(comparison: Comparison, chosen: CompareOptions) -> list[str]:
    """List the limits that the comparison exceeds, in words."""
    reasons = []
    limit = chosen.max_accuracy_drop
    if limit is not None and comparison.accuracy_drop > limit:
        (old, new), points = comparison.accuracies, 100 * comparison.accuracy_drop
        reasons.append(
            f"the accuracy falls from {old:.4f} to {new:.4f}, by {points:.2f} percentage points, "
            f"--max-accuracy-drop {100 * limit:g}%"
        )
    limit = chosen.max_changed
    if limit is not None and comparison.share_changed > limit:
        reasons.append(f"{comparison.share_changed:.2%} of the labels change, --max-changed {100 * limit:g}%")
    return reasons


def _describe(comparison: Comparison) -> str:
    old, new = comparison.accuracies
    lines = [
        f"labels    {len(comparison.changed)} of {comparison.images} change ({comparison.share_changed:.2%})",
        f"accuracy  {old:.4f} -> {new:.4f}: {comparison.gained} images gained, {comparison.lost} lost, "
        f"McNemar's p {comparison.p:.3g}",
        f"latency   {comparison.latency_ratio:.2f} times that of the old model, for a single image",
    ]
    table = Table("label", "images", "gained", "lost", box=None, pad_edge=False)
    for label in [label for label in comparison.labels_by_loss if label.gained or label.lost][:MAX_ROWS]:
        table.add_row(label.label, str(label.images), str(label.gained), str(label.lost))
    if table.row_count:
        console = Console(highlight=False, markup=False, emoji=False)
        with console.capture() as rows:
            console.print(table)
        lines.append(rows.get().rstrip("\n"))
    changes = [f"{one.path}: {one.label}, {one.old} -> {one.new}" for one in comparison.changed[:MAX_ROWS]]
    if len(comparison.changed) > len(changes):
        changes.append(f"... and {len(comparison.changed) - len(changes)} more: --page or --json shows them")
    note = "note      both accuracies hold only for images that neither model was trained on"
    return "\n".join([*lines, *changes, note])
