"""Draws tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def draw(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Draw a table in Markdown.

    Args:
        head: The names of the columns.
        rows: The cells, row by row.

    Returns:
        The lines of the table, each with a newline.
    """
    names = list(head)
    lines: list[Iterable[object]] = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
