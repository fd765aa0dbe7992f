"""A folder `training` or `serving` of a user does not affect the command; a broken import names the folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evalmode.own_packages import PACKAGES, ROOT

HIDING = "raise SystemExit('the package of the user was imported')\n"
SCRIPT = Path(sys.executable).with_name("evalmode")
COMMANDS: dict[str, list[object]] = {
    "console script": [SCRIPT],
    "python -m evalmode": [sys.executable, "-m", "evalmode"],
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with folders of both names."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(HIDING)
    return tmp_path


def run(command: list[object], folder: Path, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("how", COMMANDS)
def test_serve_is_not_affected(how: str, project: Path) -> None:
    done = run([*COMMANDS[how], "serve", "--repository", "nowhere"], project)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("evalmode: nowhere does not exist"), done.stderr


@pytest.mark.parametrize("how", COMMANDS)
def test_train_is_not_affected(how: str, project: Path) -> None:
    """It finds ``--network module:function`` in the working directory, too."""
    (project / "networks.py").write_text("")
    done = run([*COMMANDS[how], "train", "digits", "--out", "run", "--network", "networks:build"], project)
    assert done.returncode == 2
    assert "--network networks:build cannot be imported: AttributeError" in done.stderr, done.stderr


def test_serve_is_not_affected_by_a_project_on_the_path(project: Path) -> None:
    done = run([SCRIPT, "serve", "--repository", "nowhere"], project, f"{project}:{ROOT}")
    assert done.stderr.startswith("evalmode: nowhere does not exist"), done.stderr


def test_torchrun_is_not_affected(project: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1, "-m", "evalmode"]
    done = run([*launch, "serve", "--repository", "nowhere"], project)
    assert "evalmode: nowhere does not exist" in done.stderr, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("as_file", [False, True], ids=["folder", "file"])
def test_an_import_in_a_script_fails_with_both_folders(package: str, as_file: bool, tmp_path: Path) -> None:
    hiding = tmp_path / (f"{package}.py" if as_file else package)
    if not as_file:
        hiding.mkdir()
    (hiding if as_file else hiding / "__init__.py").write_text(HIDING)
    (tmp_path / "script.py").write_text(
        "from evalmode.errors import EvalmodeError\n"
        "from evalmode.own_packages import import_own\n"
        f"try: import_own('{package}.anything')\n"
        "except EvalmodeError as error: print(error)"
    )
    done = run([sys.executable, "script.py"], tmp_path)
    assert done.stdout.startswith(f"{hiding} hides evalmode's package {package!r} in {ROOT / package}: rename it"), done


@pytest.mark.parametrize("package", PACKAGES)
def test_a_hiding_package_imported_earlier_is_named(package: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "script.py").write_text(
        f"import {package}\n"
        "from evalmode.errors import EvalmodeError\n"
        "from evalmode.own_packages import import_own\n"
        f"try: import_own('{package}')\n"
        "except EvalmodeError as error: print(error)"
    )
    done = run([sys.executable, "script.py"], tmp_path)
    assert f"hides evalmode's package {package!r}" in done.stdout, done


def test_a_folder_without_an_init_file_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "serving").mkdir()
    (tmp_path / "script.py").write_text("from evalmode.own_packages import import_own\nprint(import_own('serving'))")
    done = run([sys.executable, "script.py"], tmp_path)
    assert str(ROOT / "serving") in done.stdout, done


NAMES = (
    "import rlcompleter, evalmode\n"
    "hidden = ('train', 'start_server', 'Callbacks')\n"
    "print([name for name in hidden if not hasattr(evalmode, name)])\n"
    "print('evalmode.load' in rlcompleter.Completer({'evalmode': evalmode}).attr_matches('evalmode.l')[0])\n"
    "try: evalmode.Callbacks\n"
    "except evalmode.EvalmodeError as error: print(error)\n"
    "try: from evalmode import Callbacks\n"
    "except evalmode.EvalmodeError as error: print(error)\n"
    "help(evalmode)\n"
)


def test_names_behind_a_hidden_package_are_skipped_by_completion_and_help(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text("")
    (tmp_path / "script.py").write_text(NAMES)
    done = run([sys.executable, "script.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    missing, completes, by_attribute, by_import, help_text = done.stdout.split("\n", 4)
    assert (missing, completes) == ("['Callbacks']", "True")
    assert by_attribute == by_import
    assert by_import.startswith(f"{tmp_path / 'training.py'} hides evalmode's package 'training'")
    assert "Help on package evalmode" in help_text
