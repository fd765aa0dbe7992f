"""Charts as SVG inside the page: with its font, with its colours in light and dark mode, and as wide as it allows."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from evalmode.certification.metrics import Reliability, wilson_interval
from training.datasets.dataset import Indices

FOLDER = Path(__file__).parent
COLOURS = dict(re.findall(r"--(\w+): (#\w{6});", (FOLDER / "page.css").read_text("utf-8").partition("}")[0]))
DEPTHS = tuple(name for name in COLOURS if name.startswith("depth"))
REPLACED = {colour: name for name, colour in COLOURS.items()} | {"#000000": "muted", "#b0b0b0": "rule"}
MANY_LABELS = 20  # with more, cells are not numbered, and only some rows and columns are named
MANY_POINTS = 15  # with more, lines have no dots
LARGE, SMALL = (400, 250), (280, 180)  # width and height in CSS pixels


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        title: Its title.
        svg: The drawing, with a description for screen readers.
        keys: The legend: names of colours in page.css, each with its meaning.
    """

    title: str
    svg: Markup
    keys: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Axes:
    """The axes of a line chart.

    Attributes:
        x: The horizontal positions, whole numbers.
        x_label: What they are.
        y_percent: Whether the values are shares, to be shown in percent.
        size: Width and height of the chart in CSS pixels.
    """

    x: Sequence[int]
    x_label: str = "epoch"
    y_percent: bool = False
    size: tuple[int, int] = LARGE


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
    for line in lines:
        plot.plot(axes.x, line.values, line.style, marker=marker, color=COLOURS[line.colour], clip_on=False)
    if band:
        plot.fill_between(axes.x, band[0], band[1], color=COLOURS[lines[-1].colour], alpha=0.16, linewidth=0)
    else:
        plot.set_ylim(bottom=0)
    if axes.y_percent:
        plot.yaxis.set_major_formatter(PercentFormatter(1))
    plot.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    plot.set_xlabel(axes.x_label)
    last = ", ".join(f"{line.name} {line.values[-1]:.3g}" for line in lines)
    words = f"{title} by {axes.x_label}; last values: {last}"
    return _finish(figure, title, words, [(line.colour, line.name) for line in lines])


def draw_confusion(matrix: Indices, labels: tuple[str, ...]) -> Chart:
    """Draw a confusion matrix, in which a cell is darker the larger its share of the row.

    Args:
        matrix: int64 (K, K): true labels in rows, predicted labels in columns.
        labels: The class names.

    Returns:
        The chart.
    """
    many, side = len(labels) > MANY_LABELS, min(620, 130 + 40 * len(labels))
    figure = _start(side, side)
    (plot,) = figure.axes
    alpha = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))  # the root makes single mistakes visible
    correct, wrong = to_rgba(COLOURS["blue"]), to_rgba(COLOURS["orange"])
    cells = np.where(np.eye(len(labels), dtype=bool)[..., np.newaxis], correct, wrong)
    cells[..., 3] = alpha
    plot.imshow(cells, interpolation="none")
    ticks = range(0, len(labels), -(-len(labels) // MANY_LABELS))
    names = [label if len(label) < 15 else label[:13] + "…" for label in labels[:: ticks.step]]
    plot.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    plot.set_yticks(ticks, names)
    plot.set(xlabel="predicted label", ylabel="true label")
    plot.grid(visible=False)
    for true, predicted in [] if many else np.argwhere(matrix):
        # A dark cell is dark in both modes, but the page behind a pale cell changes.
        colour = "#fefefe" if alpha[true, predicted] > 0.7 else COLOURS["ink"]
        plot.text(predicted, true, f"{matrix[true, predicted]}", ha="center", va="center", color=colour)
    words = f"Confusion matrix of {len(labels)} labels: {matrix.trace()} of {matrix.sum()} predictions are correct"
    return _finish(figure, "Predictions by true label", words, (("blue", "correct"), ("orange", "incorrect")))


def draw_reliability(reliability: Reliability) -> Chart:
    """Draw accuracy by predicted probability, with the 95% confidence interval of each bin.

    Args:
        reliability: The bins.

    Returns:
        The chart.
    """
    confidence, accuracy, images = reliability.confidence, reliability.accuracy, reliability.images
    figure = _start(400, 340)
    (plot,) = figure.axes
    plot.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (3, 4)))
    intervals = [wilson_interval(round(share * count), count) for share, count in zip(accuracy, images, strict=True)]
    plot.vlines(confidence, *zip(*intervals, strict=True), color=COLOURS["blue"], alpha=0.35, linewidth=3)
    plot.plot(confidence, accuracy, color=COLOURS["blue"])
    plot.scatter(confidence, accuracy, 20 + 200 * images / images.sum(), color=COLOURS["blue"], zorder=3)
    plot.xaxis.set_major_formatter(PercentFormatter(1))
    plot.yaxis.set_major_formatter(PercentFormatter(1))
    plot.set(xlabel="predicted probability", xlim=(0, 1.05), ylim=(0, 1.05))
    points = zip(confidence, accuracy, strict=True)
    words = "Reliability diagram: " + ", ".join(f"accuracy {y:.2f} at probability {x:.2f}" for x, y in points)
    return _finish(figure, "Accuracy by predicted probability", words, [("blue", "larger dot: more images")])


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
