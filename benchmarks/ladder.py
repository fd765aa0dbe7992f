"""What each trick of the compact network and its recipe is worth: one left out or put in at a time, on validation.

    python benchmarks/ladder.py cifar10 --out benchmarks/results/DATE-ladder.json

Every variant trains with the same seeds on one thread, several at once; accuracy does not depend on the clock, so the
machine may be busy. The test images are never read. Differences are paired by seed.
"""

from __future__ import annotations
