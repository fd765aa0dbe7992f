"""The vertical axis of a chart: limits between which the first epoch does not squash all others, and exact labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.ticker import PercentFormatter

MIN_POSITIONS = 4  # with fewer, the first position is no outlier
MAX_REACH = 2.0  # the first value may be as far from the others as twice their range: they keep a third of the axis
MAX_DECIMALS = 3  # of a tick in percent
MARGIN = 0.08  # of the range of the others, beyond them


class Limits(NamedTuple):
    """The limits of an axis, either both or none; None leaves a limit to the values."""

    low: float | None = None
    high: float | None = None

    def cuts(self, value: float) -> bool:
        """Return whether a value is beyond the limits."""
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)


class ExactPercent(PercentFormatter):
    """Labels shares with as many decimals as they need: 82.5% beside 85.0%, not 82% beside 85%."""

    def __init__(self) -> None:
        super().__init__(1, decimals=0)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Label all ticks with the same number of decimals.

        Args:
            values: The shares, in 0..1.
        """
        for self.decimals in range(MAX_DECIMALS + 1):
            if all(abs(round(100 * value, self.decimals) - 100 * value) < 1e-6 for value in values):
                break
        return [self(value) for value in values]


def find_limits(lines: Sequence[Sequence[float]], floor: float | None = None) -> Limits:
    """Find the limits of an axis: those of all positions, or of all but the first if that is far from the others.

    Args:
        lines: The values of each line, one for each position.
        floor: Where the axis begins, whatever the values are; None if they decide.

    Returns:
        The limits; both are None if every value is shown.
    """
    if len(lines[0]) < MIN_POSITIONS:
        return Limits()
    later = [value for line in lines for value in line[1:]] + ([] if floor is None else [floor])
    low, high = min(later), max(later)
    reach = high - low
    if not 0 < reach < float("inf"):
        return Limits()
    first = [line[0] for line in lines]
    near = [value for value in first if low - MAX_REACH * reach <= value <= high + MAX_REACH * reach]
    if len(near) == len(first):
        return Limits()
    least, most = min(near + later), max(near + later)
    margin = MARGIN * (most - least)
    lowest = least - margin if least < 0 else max(0.0, least - margin)  # losses and shares are not negative
    return Limits(lowest if floor is None else floor, most + margin)
