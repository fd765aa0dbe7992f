"""Show the progress of a training or an export: lines, warnings and progress bars, on a terminal or in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from training.callbacks import Callbacks, NetworkSummary, Outcome, StageFigures

if TYPE_CHECKING:
    from training.checkpoint import Epoch
    from training.datasets import Dataset
    from training.publish import Artifact, PublishedFile


def open_console(stderr: bool = False, quiet: bool = False) -> Console:
    """Open a console that prints paths and labels as they are.

    Args:
        stderr: Whether to print to standard error.
        quiet: Whether to print nothing.

    Returns:
        The console.
    """
    return Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)


class Display:
    """Shows the progress of one training or export.

    Lines and warnings go to standard output. If ``as_json`` or ``quiet`` is set, warnings go to standard error.

    Args:
        as_json: Whether standard output is for a JSON object: lines go to standard error.
        quiet: Whether to show only warnings.

    Attributes:
        dataset: The data set that was shown; None before, and in all but the first of several processes.
        outcome: The outcome that was shown; None before.
        report: The path of the report that was shown; None before.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self._lines = open_console(as_json, quiet)
        self._alerts = open_console(stderr=True) if quiet else self._lines
        self._bar: Progress | None = None
        self._has_header = False  # of the table of epochs
        self.dataset: Dataset | None = None
        self.outcome: Outcome | None = None
        self.report: Path | None = None

    def close(self) -> None:
        """Remove the progress bar, if there is one."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def print(self, lines: str, style: str = "") -> None:
        """Print lines.

        Args:
            lines: The text.
            style: A style of rich, such as ``bold``.
        """
        self._lines.print(lines, style=style or None)

    def callbacks(self) -> Callbacks:
        """Make the callbacks that show the progress."""
        return Callbacks(
            on_load=self._show_loading,
            on_data=self._show_data,
            on_network=self._show_network,
            on_step=self._show_step,
            on_epoch=self._show_epoch,
            on_stage=self._show_stage,
            on_outcome=self._show_outcome,
            on_report=self._show_report,
            on_export=self._show_export,
            on_published=self._show_published,
            on_notice=self._show_notice,
            on_warning=self._warn,
        )

    def _show_notice(self, notice: str) -> None:
        self.print(f"note      {notice}")

    def _warn(self, warning: str) -> None:
        self._alerts.print(f"warning   {warning}", style="yellow")

    def _show_bar(self, description: str, done: int, total: int | None) -> None:
        if self._bar is None:
            self._bar = _open_bar(self._lines)
        self._bar.update(self._bar.task_ids[0], description=description, completed=done, total=total)

    def _show_loading(self, stage: str, done: int, total: int) -> None:
        self._show_bar(stage, done, total)

    def _show_data(self, dataset: Dataset) -> None:
        self.close()
        self.dataset = dataset
        shape = dataset.contract
        counts = ", ".join(f"{len(getattr(dataset, name)):,} {name}" for name in ("train", "val", "test"))
        taken = f"; {dataset.carved[0]} taken from the training images" if len(dataset.carved) == 1 else ""
        self.print(f"data      {dataset.source}: {counts}; {len(dataset.labels)} labels{taken}")
        colours = "RGB" if shape.channels == 3 else "grey"
        self.print(f"pixels    {shape.height}x{shape.width}, {colours}, scaled to [-1, 1]")

    def _show_network(self, network: NetworkSummary) -> None:
        device = network.device if network.processes == 1 else f"{network.device} in {network.processes} processes"
        figures = f"{network.weights:,} weights, {network.multiply_adds:,} multiply-adds an image, on {device}"
        self.print(f"network   {network.name}, {figures}")
        if network.reason:
            self.print(f"chosen    {network.reason}")
        self._show_bar("", 0, None)

    def _show_stage(self, stage: StageFigures) -> None:
        val = "" if stage.val_accuracy is None else f", val {stage.val_accuracy:.4f}"
        self.print(f"{stage.stage:9s} {stage.text}{val}, {stage.seconds:.1f} s")

    def _show_step(self, step: int, steps: int, loss: float) -> None:
        if not self._has_header:
            self._has_header = True
            self.print("epoch      loss  train acc  val acc  seconds", style="bold")
        self._show_bar(f"loss {loss:.4f}", step, steps)

    def _show_epoch(self, epoch: Epoch) -> None:
        figures = f"{epoch.loss:9.4f}  {epoch.train_accuracy:9.4f}  {epoch.val_accuracy:7.4f}  {epoch.seconds:7.1f}"
        self.print(f"{epoch.epoch:5d} {figures}")

    def _show_outcome(self, outcome: Outcome) -> None:
        self.close()
        self.outcome = outcome
        result, run = outcome.result, outcome.run
        shared_layers = outcome.norm_layers - outcome.unmoved_layers - len(result.corrections)
        for count, why in (
            (outcome.unmoved_layers, f"training did not change them{', which are pretrained' * bool(result.stages)}"),
            (shared_layers, "the network runs them more than once, or they share their statistics"),
        ):
            if count:
                self.print(
                    f"kept      the moving statistics of {count} of {outcome.norm_layers} batch norm layers: {why}"
                )
        exact = f", with exact statistics {result.exact_val_accuracy:.4f}" if result.corrections else ""
        val = _describe_accuracy(outcome.best.val_accuracy, outcome.val_images)
        best = f"epoch {result.best_epoch}" if result.best_epoch else "the head alone"
        self.print(f"best      {best}, val {val}{exact}")
        self.print(f"test      {_describe_accuracy(result.test_accuracy, outcome.test_images)}, read once")
        if result.cross_validated:
            self.print(_describe_cross_validated(result.cross_validated))
        self.print(f"run       {run.folder}: evalmode export {run.folder} --repository models --name NAME")

    def _show_report(self, path: Path) -> None:
        self.close()
        self.report = path
        self.print(f"report    {path}")

    def _show_export(self, stage: str) -> None:
        self.close()
        self._show_bar(f"{stage} and checking", 0, None)

    def _show_published(self, published: PublishedFile) -> None:
        from training.publish import Artifact, Variant

        self.close()
        if isinstance(published, Artifact):
            self.print(_describe_artifact(published))
        elif isinstance(published, Variant):
            self.print(f"{published.kind}      {published.gain}")
        self.print(f"published {published.path} ({published.size_bytes:,} bytes)\ndigest    {published.digest}")
        for layout in published.layouts:
            self.print(layout.describe())


@contextmanager
def show_progress(callbacks: Callbacks | None) -> Iterator[Callbacks]:
    """Show the progress of a training or an export, unless the caller has callbacks.

    Args:
        callbacks: Callbacks of the caller; None to show lines and progress bars.

    Yields:
        The callbacks to use.
    """
    if callbacks is not None:
        yield callbacks
        return
    display = Display()
    try:
        yield display.callbacks()
    finally:
        display.close()


def _open_bar(console: Console) -> Progress:
    """Show a progress bar on a terminal, or in a notebook that has ipywidgets, which rich needs for it."""
    shown = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console, transient=True, disable=console.quiet or not shown)
    bar.add_task("", total=None)
    bar.start()
    return bar


def _describe_accuracy(accuracy: float, images: int) -> str:
    from evalmode.certification.metrics import wilson_interval  # it imports numpy, which --help does without

    low, high = wilson_interval(round(accuracy * images), images)
    return f"{accuracy:.4f} ({low:.4f} to {high:.4f} with 95% confidence, {images:,} images)"


def _describe_cross_validated(measured: Mapping[str, Any]) -> str:
    """Describe a ``CrossValidated`` that is given as JSON values."""
    accuracy = _describe_accuracy(measured["accuracy"], measured["images"])
    return f"crossval  {accuracy}, {measured['folds']} folds on pretrained features"


def _describe_artifact(artifact: Artifact) -> str:
    agreement, quality = artifact.agreement, artifact.quality
    before, after = quality.calibration_error
    accuracy = [f"accuracy  {_describe_accuracy(quality.accuracy, quality.images)}"]
    if quality.cross_validated:
        accuracy.append(_describe_cross_validated(vars(quality.cross_validated)))
    near_ties = f"labels equal but for {agreement.changed} of {agreement.near_ties} near ties"
    calibrated = f"calibration error {before:.4f} on test images"
    if quality.temperature == 1.0:
        calibrated += f"; {artifact.temperature_reason}"
    else:
        calibrated += f", {after:.4f} with the temperature fitted on validation images, {quality.temperature:.3f}"
    agreed = (
        f"agreement onnxruntime and torch on {agreement.images} test images: logits within "
        f"{agreement.max_logit_difference:.1e} (limit {agreement.tolerance:.1e}), {near_ties}"
    )
    return "\n".join((agreed, *accuracy, calibrated))
