"""Compares an output that a page shows with the real one, whose numbers may differ a little."""

from __future__ import annotations

import re
from itertools import zip_longest

ANY = "..."  # a line that stands for any lines
CUT = "…"  # stands for any text in a line
NUMBER = re.compile(
    r"(?P<photo>\bphotos/[\w/]+\.jpg)"
    r"|(?P<digest>\b[0-9a-f]{12,}\b)"
    r"|(?P<size>\d[\d,]*(?= bytes)|\b\d+(?:\.\d+)?(?= (?:s|ms|us)\b)|\d+(?:\.\d+)?e[+-]\d+"
    r"|\d+(?= of \d| images gained\b| lost\b)|\d+\.\d+(?=%)|(?<=McNemar's p )[\d.]+|(?<=differ by up to )[\d.]+)"
    r"|(?P<share>\b[01]\.\d+)"
    r"|(?P<number>\d+(?:\.\d+)?)"
)
DIGEST = re.compile(r"\bsha256:([0-9a-f]{12})")
NEAR = {"share": (0, 0.3), "number": (0.1, 0.05)}  # how much a number may differ: relative to it, and in addition


def list_differences(shown: str, real: str) -> list[str]:
    """List the lines of an output that are not as shown.

    Another processor rounds differently, and few photos make a training chaotic. So sizes, times, digests, rounding
    errors, photos and counts of images may have any value, shares such as accuracies may differ by 0.3, and other
    numbers a little. Spaces do not count.

    Args:
        shown: The output on the page.
        real: The output of the command.
    """
    pieces, wanted = _split(shown.splitlines()), real.splitlines()
    if len(pieces) == 1:
        return _differ(pieces[0], wanted)
    first, *middle, last = pieces
    differences = _differ(first, wanted[: len(first)])
    start, end = len(first), len(wanted) - len(last)
    for piece in middle:
        place = _find(piece, wanted[:end], start)
        if place is None:
            differences.append(f"the output lacks these lines:\n{_join(piece)}of\n{real}")
        else:
            start = place + len(piece)
    return differences + _differ(last, wanted[max(start, end) :])


def pair_digests(shown: str, real: str) -> set[tuple[str, str]]:
    """Pair the shown digests, by their first 12 digits, with those of the real lines.

    Args:
        shown: The output on the page.
        real: The output of the command.
    """
    pairs = set()
    for line in shown.splitlines():
        if DIGEST.search(line):
            other = next((one for one in real.splitlines() if _fits(line, one, exact=False)), "")
            pairs |= set(zip(DIGEST.findall(line), DIGEST.findall(other), strict=False))
    return pairs


def align(shown: list[str], real: list[str]) -> list[str]:
    """Replace the lines of a shown output by the real ones, and keep the lines ``...``.

    Args:
        shown: The lines on the page.
        real: The lines of the command.

    Returns:
        The lines; all the real ones if the shown ones are others.
    """
    first, *others = _split(shown)
    if not others:
        return [_choose(*pair) for pair in zip(shown, real, strict=True)] if len(shown) == len(real) else real
    lines, start = list(map(_choose, first, real)), len(first)
    for number, piece in enumerate(others, 1):
        is_last = number == len(others)
        place = len(real) - len(piece) if is_last else _find(piece, real, start, exact=False)
        if place is None:
            return real
        lines, start = [*lines, ANY, *map(_choose, piece, real[place:])], place + len(piece)
    return lines


def _choose(shown: str, real: str) -> str:
    """The line to show: the real one, unless the page leaves out a part of it."""
    return shown if CUT in shown and CUT not in real and _fits(shown, real) else real


def _split(lines: list[str]) -> list[list[str]]:
    """The pieces between the lines ``...``."""
    pieces: list[list[str]] = [[]]
    for line in lines:
        if line.strip() == ANY:
            pieces.append([])
        else:
            pieces[-1].append(line)
    return pieces


def _differ(shown: list[str], real: list[str]) -> list[str]:
    pairs = zip_longest(shown, real, fillvalue="(no line)")
    return [f"shown\n  {one}\nreal\n  {other}" for one, other in pairs if not _fits(one, other)]


def _find(piece: list[str], lines: list[str], start: int, exact: bool = True) -> int | None:
    """The first place of a piece in the lines; ``exact``: with numbers that fit."""
    for place in range(start, len(lines) - len(piece) + 1):
        if all(_fits(one, other, exact) for one, other in zip(piece, lines[place:], strict=False)):
            return place
    return None


def _fits(shown: str, real: str, exact: bool = True) -> bool:
    """Whether two lines are equal but for numbers."""
    if CUT in shown:
        return re.fullmatch(".*".join(map(re.escape, _blank(shown).split(CUT))), _blank(real)) is not None
    if _blank(shown) != _blank(real):
        return False
    pairs = zip(NUMBER.finditer(shown), NUMBER.finditer(real), strict=True)
    return not exact or all(_is_near(one, other) for one, other in pairs)


def _blank(line: str) -> str:
    """A line without its spaces, with marks in place of its numbers."""
    return "".join(NUMBER.sub(lambda number: f"<{number.lastgroup}>", line).split())


def _is_near(shown: re.Match[str], real: re.Match[str]) -> bool:
    kind = shown.lastgroup or ""
    if kind not in NEAR:
        return True
    relative, step = NEAR[kind]
    return abs(float(shown[0]) - float(real[0])) <= relative * float(shown[0]) + step


def _join(lines: list[str]) -> str:
    return "".join(f"  {line}\n" for line in lines)
