"""The scripts of the benchmarks start, record their results by one function, and use nothing private."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.quality.false_alarms import check_emulator
from docs.tables.measured.benchmarks import BENCHMARKS as BENCHMARKED
from docs.tables.measured.results import RESULTS, UNSTAMPED, cite, describe_commit, find_result

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
FILES = [path for path in sorted(BENCHMARKS.rglob("*.py")) if "peers" not in path.parts]
SCRIPTS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES if "def main()" in path.read_text()
}
# All in one process, which imports torch once.
HELP = """
import contextlib, importlib, io, json, sys
sys.argv[1:], names = ["--help"], sys.argv[1:]
found = {}
for name in names:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            importlib.import_module(name).main()
        except SystemExit as end:
            found[name] = [end.code, shown.getvalue()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str]]:
    """The exit code and the output of each script with --help."""
    command = [sys.executable, "-c", HELP, *SCRIPTS]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    answers: dict[str, tuple[int, str]] = json.loads(found.stdout)
    return answers


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_starts_and_documents_its_command(script: str, helps: dict[str, tuple[int, str]]) -> None:
    code, text = helps[script]
    assert not code
    assert text.startswith("usage: ")
    assert f"python -m {script}" in (ast.get_docstring(ast.parse(SCRIPTS[script].read_text())) or "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_results_are_written_by_record_alone(path: Path) -> None:
    text = path.read_text()
    if path.name != "record.py":
        assert path.name == "whole.py" or 'add_argument("--out"' not in text  # that of whole.py is a folder
        assert not re.search(r"\bout\.(?:write|open)", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_nothing_private_is_used_or_patched(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node.value):
            found.add(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom):
            found |= {f"line {node.lineno}: {one.name}" for one in node.names if is_private(one.name)}
            if node.module == "unittest.mock":
                found.add(f"line {node.lineno}: unittest.mock")
    assert not found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_own(value: ast.expr) -> bool:
    """Whether an attribute is that of the object itself, or of ``os``, whose ``_exit`` is documented."""
    return isinstance(value, ast.Name) and value.id in ("self", "cls", "os")


def test_the_readme_lists_every_benchmark() -> None:
    measuring = {name.removeprefix("benchmarks.") for name in SCRIPTS if name.count(".") == 2}
    assert measuring - {"soak.attackers"} == BENCHMARKED.keys()  # whose clients it names below the tables


def test_an_emulator_that_does_not_run_evalmode_is_no_false_alarm() -> None:
    check_emulator(["env"])
    with pytest.raises(
        SystemExit, match=r"^--qemu false cannot import evalmode\.runtime\.loading: .*; emulate another"
    ):
        check_emulator(["false"])


def test_every_result_has_a_stamp_or_the_commit_that_added_it() -> None:
    unstamped = {path.name for path in RESULTS.iterdir() if not is_stamped(path)} - {"unstamped.toml"}
    assert unstamped == UNSTAMPED.keys()
    assert all(re.fullmatch(r"[0-9a-f]{8}", commit) for commit in UNSTAMPED.values())


def is_stamped(path: Path) -> bool:
    """Whether a result has a stamp; a plot, whether its figures have one."""
    figures = path.with_suffix(".json")
    return figures.exists() and "stamp" in json.loads(figures.read_text())


def test_the_newest_result_of_a_benchmark_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("docs.tables.measured.results.RESULTS", tmp_path)
    for name in ("2026-11-26-serve.json", "2026-11-27-serve.json", "2026-11-28-serve-idle.json"):
        (tmp_path / name).write_text("{}")
    assert find_result("serve").name == "2026-11-27-serve.json"
    with pytest.raises(FileNotFoundError, match="DATE-nothing"):
        find_result("nothing")


def test_a_table_names_its_file_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = find_result("train")
    link = f"[{train.name}](../benchmarks/results/{train.name})"
    assert cite("docs/accuracy.md", "train") == f"\nSource: {link}, {describe_commit(train)}.\n"
    older = tmp_path / "2026-11-22-serve.json"
    older.write_text("{}")
    monkeypatch.setitem(UNSTAMPED, older.name, "75a7ecbe")
    assert describe_commit(older) == "commit not recorded (added by 75a7ecbe)"
    stamp = {"commit": "0123456789ab", "dirty": True, "processor": "AMD EPYC", "cpus": 2, "date": "2026-11-27T03:00"}
    path = tmp_path / "2026-11-27-serve.json"
    path.write_text(json.dumps({"stamp": stamp}))
    assert describe_commit(path) == "commit 01234567 with changes, AMD EPYC, 2 CPUs; 2026-11-27"
    path.write_text(json.dumps({"stamp": {**stamp, "dirty": False}}))
    assert describe_commit(path) == "commit 01234567, AMD EPYC, 2 CPUs; 2026-11-27"
