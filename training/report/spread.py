"""Chooses some of many items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """Choose at most this many items, evenly spaced, including the first and the last."""
    return [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
