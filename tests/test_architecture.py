"""The house rules that a machine can check: arrows between modules, names, and what an import may do."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("serving", "training")
    for path in sorted((ROOT / package).rglob("*.py"))
    if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
}

# Module -> the modules of serving that it may import. Transports -> services -> the rest -> errors.
ARROWS = {
    "serving": {"serving.model"},
    "serving.__main__": {"serving.commands"},
    "serving.errors": set(),
    "serving.prediction": set(),
    "serving.files": set(),
    "serving.limits": {"serving.errors"},
    "serving.pace": set(),
    "serving.threads": {"serving.errors"},
    "serving.repository": {"serving.errors", "serving.files"},
    "serving.cgroups": set(),
    "serving.memory": {"serving.cgroups"},
    "serving.folders": {"serving.errors", "serving.limits"},
    "serving.label_files": {"serving.errors"},
    "serving.headers": {"serving.errors", "serving.limits"},
    "serving.pixels": {"serving.errors", "serving.limits", "serving.headers"},
    "serving.certificate": {"serving.errors", "serving.limits", "serving.pixels"},
    "serving.artifact": {"serving.errors", "serving.limits", "serving.pixels", "serving.certificate"},
    "serving.model": {
        *("serving.errors", "serving.limits", "serving.pixels", "serving.artifact", "serving.certificate"),
        "serving.prediction",
    },
    "serving.trials": {"serving.errors", "serving.limits"},
    "serving.trial": {"serving.errors", "serving.model", "serving.trials"},
    "serving.drift": {"serving.certificate", "serving.pixels"},
    "serving.proof": {
        *("serving.errors", "serving.limits", "serving.pixels", "serving.artifact", "serving.certificate"),
        *("serving.model", "serving.drift", "serving.files", "serving.folders"),
    },
    "serving.batch": {"serving.errors", "serving.certificate", "serving.model"},
    "serving.decoding": {
        *("serving.errors", "serving.headers", "serving.memory", "serving.pixels", "serving.threads"),
    },
    "serving.batching": {
        *("serving.errors", "serving.limits", "serving.pixels", "serving.certificate", "serving.model"),
        *("serving.batch", "serving.cgroups", "serving.pace", "serving.threads"),
    },
    "serving.client": {"serving.errors", "serving.prediction", "serving.wire"},
    "serving.wire": set(),
    "serving.services": {
        *("serving.errors", "serving.limits", "serving.pixels", "serving.certificate", "serving.model"),
        *("serving.batch", "serving.batching", "serving.drift", "serving.repository", "serving.wire"),
        *("serving.files", "serving.trials", "serving.decoding", "serving.headers"),
    },
    "serving.transports": {
        *("serving.errors", "serving.limits", "serving.batch", "serving.batching", "serving.services", "serving.wire"),
        *("serving.model", "serving.files", "serving.threads"),
    },
    "serving.bench": {
        *("serving.client", "serving.wire", "serving.certificate", "serving.model", "serving.pixels"),
    },
    "serving.commands": {"serving"},
}
# What training may use of serving: the facts that both sides need, and publishing.
TRAINING_MAY_IMPORT = {
    "serving.commands.paths",
    *("serving.errors", "serving.limits", "serving.pixels", "serving.artifact", "serving.model", "serving.repository"),
    *("serving.certificate", "serving.proof", "serving.drift", "serving.files", "serving.commands.output"),
    *("serving.commands.image_limits", "serving.folders", "serving.headers", "serving.label_files"),
}
# Third-party package -> the only modules of serving that may import it.
ONLY_IN = {
    "torch": (),
    "onnx": ("serving.artifact", "serving.proof", "serving.commands.certify"),
    "onnxruntime": ("serving.model", "serving.proof.quantize"),
    "PIL": ("serving.pixels", "serving.proof"),
    "grpc": ("serving.transports", "serving.client", "serving.bench"),
    "pygrpc_native": ("serving.transports.native",),
    "uvloop": ("serving.transports.loop",),
    "grpc_health": ("serving.transports",),
    "grpc_reflection": ("serving.transports",),
    "prometheus_client": ("serving.services.metrics", "serving.transports.metrics"),
    "click": ("serving.commands",),
    "rich": ("serving.commands",),
}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
    return found


def is_in(module: str, packages: object) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def rule_for(module: str) -> set[str]:
    """The arrows of a module, or of the folder it lies in."""
    while module not in ARROWS:
        module = module.rpartition(".")[0]
    return ARROWS[module]


@pytest.mark.parametrize("module", [name for name in MODULES if is_in(name, ["serving"])])
def test_serving_imports_along_the_arrows(module: str) -> None:
    wanted = {name for name in imports_of(MODULES[module]) if is_in(name, ["serving", "training"])}
    wanted.discard("serving")  # holds the version, and imports nothing
    folder = module.rpartition(".")[0]
    siblings = {folder} if folder != "serving" else set()
    assert {name for name in wanted if not is_in(name, rule_for(module) | siblings)} == set()


@pytest.mark.parametrize("module", [name for name in MODULES if is_in(name, ["training"])])
def test_training_uses_only_the_shared_modules_of_serving(module: str) -> None:
    used = {name for name in imports_of(MODULES[module]) if is_in(name, ["serving"])}
    command = {"serving.__main__"} if module == "training.__main__" else set()
    assert {name for name in used if not is_in(name, TRAINING_MAY_IMPORT)} == command


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_library_of_serving_is_imported_in_one_place(package: str) -> None:
    users = {name for name, path in MODULES.items() if is_in(name, ["serving"]) and is_in_imports(package, path)}
    assert {name for name in users if not is_in(name, ONLY_IN[package])} == set()


def is_in_imports(package: str, path: Path) -> bool:
    return any(is_in(name, [package]) for name in imports_of(path))


ARRAYS = {"Array", "Floats", "Indices", "NDArray", "Pixels", "Tensors", "ndarray"}  # annotations that mean arrays


def test_what_holds_arrays_is_compared_by_identity() -> None:
    """``==`` of two dataclasses compares their fields, and numpy raises where that is an array."""
    classes = [
        node
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    holders: set[str] = set()
    while True:  # until no class holds another that holds arrays
        found = {one.name for one in classes if is_dataclass(one) and names_in(one) & (ARRAYS | holders)}
        if found == holders:
            break
        holders = found
    assert {"Certificate", "Manifest", "Model", "Split", "Dataset"} <= holders
    assert {
        one.name for one in classes if one.name in holders and "eq=False" not in ast.unparse(is_dataclass(one))
    } == set()


def is_dataclass(node: ast.ClassDef) -> ast.expr | None:
    """The decorator that makes a class a dataclass."""
    return next((one for one in node.decorator_list if ast.unparse(one).startswith("dataclass")), None)


def names_in(node: ast.ClassDef) -> set[str]:
    """Every name in the annotations of a class's fields."""
    annotations = [one.annotation for one in node.body if isinstance(one, ast.AnnAssign)]
    return {
        re.sub(r".*\.", "", ast.unparse(name))
        for one in annotations
        for name in ast.walk(one)
        if isinstance(name, ast.Name | ast.Attribute)
    }


def test_no_module_is_a_dumping_ground() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "base", "core", "manager"}
    assert {name for name in MODULES if name.rpartition(".")[2] in vague} == set()


def test_only_commands_read_the_environment() -> None:
    readers = {name for name, path in MODULES.items() if "environ" in path.read_text() or "getenv" in path.read_text()}
    commands = ["serving.commands", "training.commands"]
    assert {name for name in readers if not is_in(name, commands)} == {
        "serving.model",  # switches telemetry off
        "serving.__main__",  # the command's entry point
    }


def test_importing_does_nothing() -> None:
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
        "import sys, serving.model\n"
        "import ctypes; c = ctypes.CDLL(None); c.getenv.restype = ctypes.c_char_p\n"
        "print(c.getenv(b'ORT_DISABLE_TELEMETRY').decode())"  # what the library itself reads
    )
    environment |= {"ORT_DISABLE_TELEMETRY": wish} if wish else {}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == answer + "\n", done.stderr
    lines = MODULES["serving.model"].read_text().splitlines()
    assert lines.index("import onnxruntime as ort") > lines.index('os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")')
