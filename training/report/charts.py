"""Charts as SVG inside the page: in its font, in its colours by day and by night, as wide as it allows."""

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

from evalmode.certification.metrics import wilson_interval
from training.datasets.dataset import Indices
from training.report.findings import Floats

FOLDER = Path(__file__).parent
COLOURS = dict(re.findall(r"--(\w+): (#\w{6});", (FOLDER / "page.css").read_text("utf-8").partition("}")[0]))
DEPTHS = tuple(name for name in COLOURS if name.startswith("depth"))
REPLACED = {colour: name for name, colour in COLOURS.items()} | {"#000000": "muted", "#b0b0b0": "rule"}
MANY_LABELS = 20  # more have no numbers in the cells, and a name only at some rows
MANY_POINTS = 15  # more have no dots on the line
LARGE, SMALL = (400, 250), (280, 180)  # in the page's pixels
Line = tuple[str, str, Sequence[float], str]  # name, colour in page.css, values, style


@dataclass(frozen=True)
class Chart:
    """A figure of the page: markup that also says in words what it shows, and colours with what they stand for."""

    title: str
    svg: Markup
    keys: Sequence[tuple[str, str]]


def _start(width: int, height: int) -> Figure:
    with mpl.rc_context(fname=FOLDER / "chart.mplstyle"):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        figure.subplots()
    return figure


def _finish(figure: Figure, title: str, words: str, keys: Sequence[tuple[str, str]]) -> Chart:
    """Take the SVG without its header, give it the page's colours and font, and ids that no other figure has."""
    buffer = StringIO()
    with mpl.rc_context(fname=FOLDER / "chart.mplstyle"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a label; the reader's browser has it
        figure.savefig(buffer, format="svg")
    _, start, svg = buffer.getvalue().partition('<g id="figure')
    svg = re.sub("|".join(REPLACED), lambda found: f"var(--{REPLACED[found[0]]})", start + svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{zlib.crc32((title + words + svg).encode()):08x}-", svg)
    width, height = 72 * figure.get_size_inches()
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="--width: {width:.0f}px"'
    head = f'<svg {size} role="img" aria-label="{escape(words)}">'
    return Chart(title, Markup(head + svg), keys)  # noqa: S704  # matplotlib escapes names


def draw_lines(
    title: str,
    x: Sequence[int],
    lines: Sequence[Line],
    axis: str = "epoch",
    band: Sequence[Sequence[float]] = (),
    share: bool = False,
    size: tuple[int, int] = LARGE,
) -> Chart:
    """Lines over whole numbers, from 0 upwards or with a band between a lower and an upper limit."""
    figure = _start(*size)
    (axes,) = figure.axes
    for _, colour, y, style in lines:
        axes.plot(x, y, style, marker="" if len(x) > MANY_POINTS else "o", color=COLOURS[colour], clip_on=False)
    if band:
        axes.fill_between(x, band[0], band[1], color=COLOURS[lines[-1][1]], alpha=0.16, linewidth=0)
    else:
        axes.set_ylim(bottom=0)
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel(axis)
    words = ", ".join(f"{name} {y[-1]:.3g}" for name, _, y, _ in lines)
    return _finish(figure, title, f"{title} by {axis}, at the last: {words}", [(line[1], line[0]) for line in lines])


def draw_confusion(matrix: Indices, labels: tuple[str, ...]) -> Chart:
    """Rows are true labels, columns predicted ones; a cell is the darker, the larger its share of the row."""
    many, side = len(labels) > MANY_LABELS, min(620, 130 + 40 * len(labels))
    figure = _start(side, side)
    (axes,) = figure.axes
    alpha = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))  # the root makes single mistakes visible
    right, wrong = to_rgba(COLOURS["blue"]), to_rgba(COLOURS["orange"])
    cells = np.where(np.eye(len(labels), dtype=bool)[..., np.newaxis], right, wrong)
    cells[..., 3] = alpha
    axes.imshow(cells, interpolation="none")
    ticks = range(0, len(labels), -(-len(labels) // MANY_LABELS))
    names = [label if len(label) < 15 else label[:13] + "…" for label in labels[:: ticks.step]]
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(visible=False)
    for true, predicted in [] if many else np.argwhere(matrix):
        # Cells are the same by night, paper is not.
        colour = "#fefefe" if alpha[true, predicted] > 0.7 else COLOURS["ink"]
        axes.text(predicted, true, f"{matrix[true, predicted]}", ha="center", va="center", color=colour)
    words = f"Confusion matrix of {len(labels)} labels: {matrix.trace()} of {matrix.sum()} answers on the diagonal"
    return _finish(figure, "True label by predicted label", words, (("blue", "right"), ("orange", "wrong")))


def draw_calibration(confidence: Floats, right: Floats, images: Indices) -> Chart:
    """Share right by predicted probability, with the interval that the images of each bin allow."""
    figure = _start(400, 340)
    (axes,) = figure.axes
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (3, 4)))
    intervals = [wilson_interval(round(share * count), count) for share, count in zip(right, images, strict=True)]
    axes.vlines(confidence, *zip(*intervals, strict=True), color=COLOURS["blue"], alpha=0.35, linewidth=3)
    axes.plot(confidence, right, color=COLOURS["blue"])
    axes.scatter(confidence, right, 20 + 200 * images / images.sum(), color=COLOURS["blue"], zorder=3)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="predicted probability", xlim=(0, 1.05), ylim=(0, 1.05))
    words = "Reliability: " + ", ".join(f"{y:.2f} right at {x:.2f}" for x, y in zip(confidence, right, strict=True))
    return _finish(figure, "Share right by predicted probability", words, [("blue", "larger dots: more images")])
