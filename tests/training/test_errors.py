"""The documented tree of errors equals the tree of the classes."""

from __future__ import annotations

import re

from evalmode.errors import EvalmodeError
from training import errors


def test_the_documented_tree_holds_every_error_with_its_parent_and_exit_code() -> None:
    documented: dict[str, str] = {}  # error -> parent
    exit_codes: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.search(r"^(\W*)([A-Z]\w+) ", line.removeprefix("    ")):
            depth, name = len(match[1]), match[2]
            above = [(other, parent) for other, parent in above if other < depth]
            if above:
                documented[name] = above[-1][1]
            if code := re.search(r": exit (\d)$", line):
                exit_codes[name] = code[1]
            above.append((depth, name))
    classes = {
        name: one for name, one in vars(errors).items() if isinstance(one, type) and one.__module__ == errors.__name__
    }
    assert documented == {name: one.__base__.__name__ for name, one in classes.items() if one.__base__}
    own = [one for one in classes.values() if issubclass(one, EvalmodeError) and one.__base__ is EvalmodeError]
    assert exit_codes == {one.__name__: str(one.exit_code) for one in own}
