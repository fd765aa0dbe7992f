"""Damaged bytes for property tests: valid bytes with a few edits, or any bytes after a valid start."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st


@st.composite
def mutated(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """One of the originals, with bytes replaced, inserted and removed, and perhaps cut short."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content)))
        removed = draw(st.integers(0, 8))
        content[place : place + removed] = draw(st.binary(max_size=8))
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.booleans()) else bytes(content)


def started(starts: Sequence[bytes], max_size: int = 200) -> st.SearchStrategy[bytes]:
    """Any bytes after one of the starts."""
    return st.builds(lambda start, rest: start + rest, st.sampled_from(starts), st.binary(max_size=max_size))
