"""Charts as SVG inside the page: with its font, with its colours in light and dark mode, and as wide as it allows."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from evalmode.certification.design.rendering import STYLE
from evalmode.certification.metrics import Reliability, wilson_interval
from training.datasets.dataset import Indices
from training.report.axis import ExactPercent, Limits, find_limits

FOLDER = Path(__file__).parent
COLOURS = dict(re.findall(r"--(\w+): (#\w{6});", STYLE.read_text("utf-8").partition("}")[0]))
DEPTHS = tuple(name for name in COLOURS if name.startswith("depth"))
REPLACED = {colour: name for name, colour in COLOURS.items()} | {"#000000": "muted", "#b0b0b0": "rule"}
MANY_LABELS = 20  # with more, the confusion matrix is a chart: cells are not numbered, and only some are named
CONFUSION_KEYS = (("blue", "correct"), ("orange", "incorrect"))
FEW_POINTS = 6  # with at most these, the horizontal axis has a tick at each
MANY_POINTS = 15  # with more, lines have no dots
NAMED_CUTS = 2  # lines that are cut off and named; of more, the range is stated
LARGE, SMALL = (400, 250), (280, 180)  # width and height in CSS pixels


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        title: Its title.
        svg: The drawing, with a description for screen readers.
        keys: The legend: names of colours in page.css, each with its meaning.
        note: What a reader must know to read it, such as a value beyond the axis; "" for nothing.
    """

    title: str
    svg: Markup
    keys: Sequence[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Axes:
    """The axes of a line chart.

    Attributes:
        x: The horizontal positions, whole numbers.
        x_label: What they are.
        y_percent: Whether the values are shares, to be shown in percent.
        size: Width and height of the chart in CSS pixels.
        marked: A position to mark by a dotted line; None for no mark.
    """

    x: Sequence[int]
    x_label: str = "epoch"
    y_percent: bool = False
    size: tuple[int, int] = LARGE
    marked: int | None = None


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: Its name in the legend.
        colour: The name of its colour in page.css.
        values: One for each position.
        style: Its line style in matplotlib's notation.
    """

    name: str
    colour: str
    values: Sequence[float]
    style: str = "-"


def draw_lines(title: str, axes: Axes, lines: Sequence[Line], band: Sequence[Sequence[float]] = ()) -> Chart:
    """Draw lines over whole numbers.

    Args:
        title: The title of the chart.
        axes: The horizontal positions, and how the axes look.
        lines: The lines, at least one.
        band: The lower and the upper limits of an area to shade; if there is none, the vertical axis begins at 0.

    Returns:
        The chart.
    """
    figure = _start(*axes.size)
    (plot,) = figure.axes
    marker = "" if len(axes.x) > MANY_POINTS else "o"
    limits = find_limits([line.values for line in lines] + [*band], floor=None if band else 0.0)
    for line in lines:
        shown = [float("nan") if limits.cuts(value) else value for value in line.values]
        plot.plot(axes.x, shown, linestyle="none", marker=marker, color=COLOURS[line.colour], clip_on=False)
        plot.plot(axes.x, line.values, line.style, color=COLOURS[line.colour], clip_on=limits != Limits())
    if band:
        plot.fill_between(axes.x, band[0], band[1], color=COLOURS[lines[-1].colour], alpha=0.16, linewidth=0)
    else:
        plot.set_ylim(bottom=0)
    if limits != Limits():
        plot.set_ylim(limits.low, limits.high)
    if axes.marked is not None:
        plot.axvline(axes.marked, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (1, 3)))
    if axes.y_percent:
        plot.yaxis.set_major_formatter(ExactPercent())
    some = MaxNLocator(FEW_POINTS, integer=True, min_n_ticks=1)
    plot.xaxis.set_major_locator(some if len(axes.x) > FEW_POINTS else FixedLocator(axes.x))
    plot.set_xlabel(axes.x_label)
    last = ", ".join(f"{line.name} {line.values[-1]:.3g}" for line in lines)
    words = f"{title} by {axes.x_label}; last values: {last}"
    chart = _finish(figure, title, words, [(line.colour, line.name) for line in lines])
    return replace(chart, note=_describe_cut(axes, lines, limits))


def _describe_cut(axes: Axes, lines: Sequence[Line], limits: Limits) -> str:
    """Describe the values of the first position that are beyond the axis; "" if there are none."""
    cut = [(line.name, line.values[0]) for line in lines if limits.cuts(line.values[0])]
    if not cut:
        return ""
    values = ", ".join(f"{name} {100 * value:.1f}%" if axes.y_percent else f"{name} {value:.3g}" for name, value in cut)
    if len(cut) > NAMED_CUTS:
        values = f"{len(cut)} lines from {min(value for _, value in cut):.3g} to {max(value for _, value in cut):.3g}"
    return f"Beyond the axis, so that the others can be read: {axes.x_label} {axes.x[0]}, {values}."


def draw_confusion(matrix: Indices, labels: tuple[str, ...]) -> Chart:
    """Draw the confusion matrix of many labels, in which a cell is darker the larger its share of the row.

    Args:
        matrix: int64 (K, K): true labels in rows, predicted labels in columns.
        labels: The class names; some of them are shown.

    Returns:
        The chart.
    """
    figure = _start(620, 620)
    (plot,) = figure.axes
    correct, wrong = to_rgba(COLOURS["blue"]), to_rgba(COLOURS["orange"])
    cells = np.where(np.eye(len(labels), dtype=bool)[..., np.newaxis], correct, wrong)
    cells[..., 3] = shade(matrix)
    plot.imshow(cells, interpolation="none")
    ticks = range(0, len(labels), -(-len(labels) // MANY_LABELS))
    names = [label if len(label) < 15 else label[:13] + "…" for label in labels[:: ticks.step]]
    plot.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    plot.set_yticks(ticks, names)
    plot.set(xlabel="predicted label", ylabel="true label")
    plot.grid(visible=False)
    words = f"Confusion matrix of {len(labels)} labels: {matrix.trace()} of {matrix.sum()} predictions are correct"
    return _finish(figure, "Predictions by true label", words, CONFUSION_KEYS)


def shade(matrix: Indices) -> npt.NDArray[np.float64]:
    """Compute how dark each cell of a confusion matrix is, float64 (K, K) in 0..1.

    The root of its share of the row: it makes single mistakes visible.

    Args:
        matrix: int64 (K, K): true labels in rows, predicted labels in columns.
    """
    shades: npt.NDArray[np.float64] = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))
    return shades


def draw_reliability(exported: Reliability, uncalibrated: Reliability | None) -> Chart:
    """Draw accuracy by predicted probability, with the 95% confidence interval of each bin.

    Args:
        exported: The bins of the probabilities that the exported artifact returns.
        uncalibrated: Those without its temperature; None if it has none.

    Returns:
        The chart.
    """
    confidence, accuracy, images = exported.confidence, exported.accuracy, exported.images
    figure = _start(400, 340)
    (plot,) = figure.axes
    plot.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (3, 4)))
    if uncalibrated:
        before, sizes = (uncalibrated.confidence, uncalibrated.accuracy), _size_dots(uncalibrated)
        plot.scatter(*before, sizes, facecolors="none", edgecolors=COLOURS["orange"], linewidths=1.5, zorder=2)
    intervals = [wilson_interval(round(share * count), count) for share, count in zip(accuracy, images, strict=True)]
    plot.vlines(confidence, *zip(*intervals, strict=True), color=COLOURS["blue"], alpha=0.35, linewidth=3)
    plot.scatter(confidence, accuracy, _size_dots(exported), color=COLOURS["blue"], zorder=3)
    plot.xaxis.set_major_formatter(PercentFormatter(1))
    plot.yaxis.set_major_formatter(PercentFormatter(1))
    plot.set(xlabel="predicted probability", xlim=(0, 1.05), ylim=(0, 1.05))
    points = zip(confidence, accuracy, strict=True)
    words = "Reliability diagram: " + ", ".join(f"accuracy {y:.2f} at probability {x:.2f}" for x, y in points)
    keys = [("blue", "as exported"), ("orange", "without temperature")] if uncalibrated else [("blue", "as exported")]
    chart = _finish(figure, "Accuracy by predicted probability", words, keys)
    return replace(chart, note="The larger the dot, the more images.")


def _size_dots(reliability: Reliability) -> npt.NDArray[np.float64]:
    """Compute the areas of the dots of a reliability diagram."""
    areas: npt.NDArray[np.float64] = 20 + 200 * reliability.images / reliability.images.sum()
    return areas


def _start(width: int, height: int) -> Figure:
    with mpl.rc_context(fname=FOLDER / "chart.mplstyle"):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        figure.subplots()
    return figure


def _finish(figure: Figure, title: str, words: str, keys: Sequence[tuple[str, str]]) -> Chart:
    """Save a figure as SVG without its header, with the page's colours and font, and with ids of its own.

    Args:
        figure: The figure.
        title: The title of the chart.
        words: What it shows, for screen readers.
        keys: The legend.
    """
    buffer = StringIO()
    with mpl.rc_context(fname=FOLDER / "chart.mplstyle"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in a label; the browser has the glyph
        figure.savefig(buffer, format="svg")
    _, start, svg = buffer.getvalue().partition('<g id="figure')
    svg = re.sub("|".join(REPLACED), lambda found: f"var(--{REPLACED[found[0]]})", start + svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{zlib.crc32((title + words + svg).encode()):08x}-", svg)
    width, height = 72 * figure.get_size_inches()
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="--width: {width:.0f}px"'
    head = f'<svg {size} role="img" aria-label="{escape(words)}">'
    return Chart(title, Markup(head + svg), keys)  # noqa: S704  # matplotlib escapes names
