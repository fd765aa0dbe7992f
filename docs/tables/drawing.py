"""Draws the packages and their imports as an SVG, in colors that are legible on light and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Graph = Mapping[str, set[str]]

COLORS = {
    "training": "#0f766e",
    "evalmode": "#4f46e5",
    "serving": "#b45309",
}  # white text on them has a contrast of 5:1
BOX = (116, 30)  # width and height of a package, pixels
STEP = (128, 58)  # from one package to the next
MARGIN, TITLE = 14, 26
LINE = "#8b93a1"


def draw_packages(graph: Graph) -> str:
    """Draw packages in three columns, each package above those that it imports.

    Args:
        graph: The direct imports of each package, without those that follow from others.

    Returns:
        The text of an SVG file.
    """
    places, panels = _place(graph)
    width = max(left + across for left, across in panels.values()) + MARGIN
    height = max(y for _, y in places.values()) + BOX[1] + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">',
        "<title>The packages of evalmode and their imports</title>",
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>',
    ]
    for outer, (left, across) in panels.items():
        lines.append(
            f'<rect x="{left}" y="{MARGIN}" width="{across}" height="{height - 2 * MARGIN}" rx="10" '
            f'fill="{COLORS[outer]}" fill-opacity="0.08"/>'
            f'<text x="{left + 12}" y="{MARGIN + 19}" font-size="14" font-weight="600" '
            f'fill="{LINE}">{outer}/</text>'
        )
    lines += [_draw_arrow(places[name], places[other]) for name in graph for other in sorted(graph[name])]
    lines += [_draw_box(name, place) for name, place in places.items()]
    return "\n".join([*lines, "</svg>"]) + "\n"


def find_levels(graph: Graph) -> dict[str, int]:
    """Find how many imports lead from each package to one that imports nothing, on the longest way.

    Args:
        graph: The imports of each package, without cycles.

    Returns:
        The level of each package; 0 for those that import nothing.
    """
    levels: dict[str, int] = {}

    def visit(name: str) -> int:
        if name not in levels:
            levels[name] = 1 + max((visit(other) for other in graph[name]), default=-1)
        return levels[name]

    for name in graph:
        visit(name)
    return levels


def _place(graph: Graph) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """The top left corner of each package, and the left edge and width of each column."""
    levels = find_levels(graph)
    top = max(levels.values())
    places: dict[str, tuple[float, float]] = {}
    panels: dict[str, tuple[float, float]] = {}
    left: float = MARGIN
    for outer in COLORS:
        inside = [name for name in graph if name.partition(".")[0] == outer]
        rows = [[name for name in inside if levels[name] == level] for level in range(top + 1)]
        across = max(len(row) for row in rows) * STEP[0] + MARGIN
        panels[outer] = (left, across)
        for level, row in enumerate(rows):
            y = MARGIN + TITLE + (top - level) * STEP[1] + 8
            for x, name in zip(_spread(len(row), left, across), _order(row, graph, places), strict=True):
                places[name] = (x, y)
        left += across + MARGIN
    return places, panels


def _order(row: Sequence[str], graph: Graph, places: Mapping[str, tuple[float, float]]) -> list[str]:
    """The packages of a row, each as close as possible to the packages that it imports."""

    def center(name: str) -> float:
        known = [places[other][0] for other in graph[name] if other in places]
        return sum(known) / len(known) if known else 0

    return sorted(row, key=center)


def _spread(count: int, left: float, across: float) -> list[float]:
    """The left edges of boxes in the middle of a column."""
    start = left + (across - count * STEP[0]) / 2 + (STEP[0] - BOX[0]) / 2
    return [start + number * STEP[0] for number in range(count)]


def _draw_box(name: str, place: tuple[float, float]) -> str:
    outer, _, inner = name.partition(".")
    x, y = place
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="6" fill="{COLORS[outer]}"/>'
        f'<text x="{x + BOX[0] / 2:g}" y="{y + 20:g}" font-size="14" fill="#fff" text-anchor="middle">'
        f"{escape(inner or outer)}</text>"
    )


def _draw_arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = start, end
    x, y, to_x = x + BOX[0] / 2, y + BOX[1], to_x + BOX[0] / 2
    bend = max((to_y - y) / 2, 20)
    return (
        f'<path d="M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y - 1:g}" fill="none" '
        f'stroke="{LINE}" stroke-width="1.3" stroke-opacity="0.75" marker-end="url(#tip)"/>'
    )
