"""Labels of files that may name several labels alike, as lists of ImageNet do: a crane is a bird and a machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from evalmode.certification.found.facts import Fact, make_fact
from evalmode.certification.found.values import to_labels, to_names


def make_labels(value: Any, source: str, read: Callable[[Any], Any] = lambda value: value) -> Fact:
    """Make a fact of names. Labels with the same name get their index: "crane (134)" and "crane (517)".

    Args:
        value: The names in the file, as a list or by index.
        source: The file and the key. That of the fact says which names got an index.
        read: Converts the value before.

    Returns:
        The fact; one with a problem if the value cannot be converted.
    """
    fact = make_fact("labels", value, source, lambda value: to_names(read(value)))
    counts = Counter(fact.value or ())
    alike = [name for name, count in counts.items() if count > 1]
    if not alike:
        return fact
    labels = [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(fact.value)]
    said = f"{', '.join(map(repr, alike[:3]))}{', ...' if len(alike) > 3 else ''}"
    return replace(
        make_fact("labels", labels, source, to_labels),
        source=f"{source}; {said} with their index, as the name of several labels",
    )
