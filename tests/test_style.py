"""The rules of size and documentation for every function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("evalmode", "serving", "training")
MAX_LINES = 60
MAX_PARAMETERS = 6
Function = ast.FunctionDef | ast.AsyncFunctionDef

PACKAGE_FILES = [
    path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in path.name
]
FILES = [*PACKAGE_FILES, *sorted((ROOT / "benchmarks").rglob("*.py")), *sorted((ROOT / "docs").rglob("*.py"))]
FILES += sorted((ROOT / "examples").rglob("*.py"))
FILES += [path for path in sorted((ROOT / "tests").rglob("*.py")) if "_pb2" not in path.name]


def each_file(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files, ids=lambda path: str(path.relative_to(ROOT)))


@each_file(FILES)
def test_functions_are_short(path: Path) -> None:
    long = {
        f"{path.relative_to(ROOT)}:{function.lineno}: {function.name} has {count_lines(function)} lines"
        for function in walk_functions(path)
        if count_lines(function) > MAX_LINES
    }
    assert not long, f"more than {MAX_LINES} lines"


@each_file(FILES)
def test_functions_have_few_parameters(path: Path) -> None:
    wide = {
        f"{path.relative_to(ROOT)}:{function.lineno}: {function.name} has {len(list_parameters(function))} parameters"
        for function in walk_functions(path)
        if len(list_parameters(function)) > MAX_PARAMETERS
    }
    assert not wide, f"more than {MAX_PARAMETERS} parameters: pass a frozen dataclass"


@each_file(PACKAGE_FILES)
def test_public_functions_document_their_arguments(path: Path) -> None:
    """From two parameters on; ruff's D417 holds that an Args section names every parameter."""
    silent = {
        f"{path.relative_to(ROOT)}:{function.lineno}: {name}"
        for name, function, documentation in walk_public(path)
        if len(list_parameters(function)) > 1 and "Args:" not in documentation
    }
    assert not silent, "without Args in the docstring"


@each_file(PACKAGE_FILES)
def test_public_functions_document_what_they_raise(path: Path) -> None:
    silent = {
        f"{path.relative_to(ROOT)}:{function.lineno}: {name}"
        for name, function, documentation in walk_public(path)
        if raises(function) and "Raises:" not in documentation
    }
    assert not silent, "without Raises in the docstring"


def walk_functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function))


def walk_public(path: Path) -> Iterator[tuple[str, Function, str]]:
    """Name, function and docstring of everything that other modules may call.

    ``__init__`` is documented by its class, RPC methods by their contract. A click command's docstring is its help.
    """
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, Function) and is_public(node.name) and not is_command(node):
            yield node.name, node, ast.get_docstring(node) or ""
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            for method in node.body:
                if isinstance(method, Function) and is_documented(method):
                    owner = node if method.name == "__init__" else method
                    yield f"{node.name}.{method.name}", method, ast.get_docstring(owner) or ""


def is_public(name: str) -> bool:
    return not name.startswith("_")


def is_command(function: Function) -> bool:
    return any(ast.unparse(decorator).startswith("click.") for decorator in function.decorator_list)


def is_documented(method: Function) -> bool:
    decorators = {ast.unparse(one) for one in method.decorator_list}
    named_by_contract = method.name[0].isupper()  # RPC methods: Check, Predict
    return (
        (is_public(method.name) or method.name == "__init__") and not named_by_contract and "overload" not in decorators
    )


def count_lines(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def list_parameters(function: Function) -> list[str]:
    """The parameters, without ``self`` and ``cls``."""
    arguments = function.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [one.arg for one in (arguments.vararg, arguments.kwarg) if one]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def raises(function: Function) -> bool:
    """Whether the function itself raises a new error: not one inside it, not the one it handles."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            return True
        waiting += ast.iter_child_nodes(node)
    return False
