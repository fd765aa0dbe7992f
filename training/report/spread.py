"""Chooses some of many items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """Choose evenly spaced items, including the first and the last.

    Args:
        items: The items.
        count: The largest number of items to choose.
    """
    return [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
