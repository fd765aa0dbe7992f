"""``evalmode`` with a leak: each answer keeps a kilobyte. benchmarks/soak/leaks.py --leak must detect it."""

from __future__ import annotations

from functools import wraps
from typing import Any

from evalmode.cli.main import main
from serving.services.statistics import Statistics

LEAKED_BYTES = 1000
kept: list[bytes] = []
count_answer = Statistics.count_answer


@wraps(count_answer)
def count_and_keep(*arguments: Any, **named: Any) -> None:
    """Call the method, and keep a kilobyte."""
    kept.append(bytes(LEAKED_BYTES))
    count_answer(*arguments, **named)


if __name__ == "__main__":
    Statistics.count_answer = count_and_keep  # type: ignore[method-assign]
    main()
