"""Rules of the architecture: imports between packages, names, and the side effects of imports."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = tomllib.loads((ROOT / "docs" / "packages.toml").read_text())  # name -> what it is for, what it may import
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("evalmode", "serving", "training")
    for path in sorted((ROOT / package).rglob("*.py"))
    if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
}
# Third-party package -> the only modules that may import it.
ONLY_IN = {
    "torch": ("training",),
    "onnx": ("evalmode.artifact", "evalmode.certification", "training"),
    "onnxruntime": ("evalmode.runtime", "evalmode.certification.quantize", "evalmode.certification.int8_weights"),
    "PIL": (
        "evalmode.images",
        "evalmode.runtime.explanation",
        "evalmode.certification",
        "evalmode.cli.quickstart",
        "training",
    ),
    "grpc": ("serving.transports", "evalmode.client", "evalmode.bench"),
    "pygrpc_native": ("serving.transports.native",),
    "uvloop": ("serving.transports.loop",),
    "grpc_health": ("serving.transports",),
    "grpc_reflection": ("serving.transports",),
    "prometheus_client": ("serving.services.metrics", "serving.services.processes", "serving.transports.metrics"),
    "click": ("evalmode.cli",),
    "rich": ("evalmode.cli", "evalmode.display"),
}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: relative import"
            assert not node.level, f"{path}: relative import"
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
    return found


def is_in(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def package_of(module: str) -> str:
    """The innermost package of the table that a module is in."""
    while module not in PACKAGES:
        module = module.rpartition(".")[0]
    return module


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_packages_that_the_table_allows(module: str) -> None:
    package = package_of(module)
    allowed = PACKAGES[package]["imports"]
    imported = {
        package_of(name) for name in imports_of(MODULES[module]) if is_in(name, ["evalmode", "serving", "training"])
    }
    # `evalmode` itself holds the version. A package may import its sub-packages, and its siblings in training.
    assert "*" in allowed or imported - {package, "evalmode", *allowed, *inside(package)} == set()


def test_only_the_command_imports_the_command_line() -> None:
    users = {name for name, path in MODULES.items() if is_in_imports("evalmode.cli", path)}
    assert {name for name in users if not is_in(name, ["evalmode.cli"])} == {"evalmode.__main__"}


def imports_of_package(package: str) -> set[str]:
    """The packages of the table that the modules of a package import."""
    modules = (path for name, path in MODULES.items() if package_of(name) == package)
    names = {name for path in modules for name in imports_of(path)}
    return {package_of(name) for name in names if is_in(name, ["evalmode", "serving", "training"])}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_that_the_table_allows_is_used(package: str) -> None:
    assert set(PACKAGES[package]["imports"]) - {"*"} - imports_of_package(package) == set()


def inside(package: str) -> set[str]:
    """The packages of the table that are inside a package; for a package of training, all packages of training."""
    outer = "training" if package.startswith("training") else package
    return {name for name in PACKAGES if is_in(name, [outer])}


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_library_is_imported_only_by_the_modules_listed_for_it(package: str) -> None:
    users = {name for name, path in MODULES.items() if is_in_imports(package, path)}
    assert {name for name in users if not is_in(name, ONLY_IN[package])} == set()


def is_in_imports(package: str, path: Path) -> bool:
    return any(is_in(name, [package]) for name in imports_of(path))


ARRAYS = {"Array", "Floats", "Indices", "NDArray", "Pixels", "Tensors", "ndarray"}  # annotations that mean arrays


def test_dataclasses_that_hold_arrays_are_compared_by_identity() -> None:
    """``==`` of two dataclasses compares their fields, and numpy raises if a field is an array."""
    classes = [
        node
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    holders: set[str] = set()
    while True:  # repeat for classes that hold such classes
        found = {one.name for one in classes if is_dataclass(one) and names_in(one) & (ARRAYS | holders)}
        if found == holders:
            break
        holders = found
    known = {"TensorCertificate", "ClassifierManifest", "TensorManifest", "ImageClassifier", "Split", "Dataset"}
    assert known <= holders
    assert {
        one.name for one in classes if one.name in holders and "eq=False" not in ast.unparse(is_dataclass(one) or one)
    } == set()


def is_dataclass(node: ast.ClassDef) -> ast.expr | None:
    """The decorator that makes a class a dataclass."""
    return next((one for one in node.decorator_list if ast.unparse(one).startswith("dataclass")), None)


def names_in(node: ast.ClassDef) -> set[str]:
    """Every name in the annotations of a class's fields, and its base classes."""
    annotations = [*(one.annotation for one in node.body if isinstance(one, ast.AnnAssign)), *node.bases]
    return {
        re.sub(r".*\.", "", ast.unparse(name))
        for one in annotations
        for name in ast.walk(one)
        if isinstance(name, ast.Name | ast.Attribute)
    }


def test_no_module_has_a_vague_name() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "base", "core", "manager"}
    assert {name for name in MODULES if name.rpartition(".")[2] in vague} == set()


def test_only_commands_read_the_environment() -> None:
    readers = {name for name, path in MODULES.items() if re.search(r"\benviron\b|getenv", path.read_text())}
    assert {name for name in readers if not is_in(name, ["evalmode.cli"])} == {
        "evalmode.runtime.session",  # switches telemetry off
        "serving.spawn",  # grpc reads how much it logs when it is imported
        "training.torch_runtime",  # OpenMP reads a variable when torch is imported
        "evalmode.__main__",  # the command's entry point
    }


def test_imports_have_no_side_effects() -> None:
    """No output, no logging set up, no thread started, by the import of any module."""
    code = (
        "import importlib, logging, threading\n"
        f"for name in {list(MODULES)!r}: importlib.import_module(name)\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('serving').handlers\n"
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("wish", "answer"), [(None, "1"), ("0", "0")])
def test_nothing_is_reported_to_the_vendor_of_a_library_unless_the_user_wants_it(wish: str | None, answer: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = (
        "import sys, evalmode.runtime.session\n"
        "import ctypes; c = ctypes.CDLL(None); c.getenv.restype = ctypes.c_char_p\n"
        "print(c.getenv(b'ORT_DISABLE_TELEMETRY').decode())"  # what the library itself reads
    )
    environment |= {"ORT_DISABLE_TELEMETRY": wish} if wish else {}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == answer + "\n", done.stderr
    lines = MODULES["evalmode.runtime.session"].read_text().splitlines()
    assert lines.index("import onnxruntime as ort") > lines.index('os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")')
