"""The tree of errors in the documentation of the module is that of the classes."""

from __future__ import annotations

import inspect
import re

from evalmode import errors
from evalmode.errors import EvalmodeError, RequestError, at_field


def read_tree() -> dict[str, str]:
    """Return the parent of each class in the documentation, by its indentation."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").split("::\n\n")[1].split("\n\n")[0].splitlines():
        found = re.match(r"[ │├└─]*(?=\w)", line)
        assert found is not None
        depth, name = found.end(), line[found.end() :].split()[0]
        while above and above[-1][0] >= depth:
            above.pop()
        parents[name] = above[-1][1] if above else "Exception"
        above.append((depth, name))
    return parents


def test_the_documented_tree_is_that_of_the_classes() -> None:
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, EvalmodeError)]
    assert read_tree() == {one.__name__: one.__mro__[1].__name__ for one in classes}


def test_the_facts_of_an_error_are_text() -> None:
    assert EvalmodeError("too large", size_bytes=3, limit_bytes=2).facts == {"size_bytes": "3", "limit_bytes": "2"}


def test_at_field_keeps_the_field_that_an_error_has() -> None:
    fields = []
    for error in (RequestError("wrong"), RequestError("wrong", field="inner")):
        try:
            with at_field("outer"):
                raise error
        except RequestError as caught:
            fields.append(caught.field)
    assert fields == ["outer", "inner"]
