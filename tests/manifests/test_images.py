"""The Dockerfiles pass hadolint, name the package's version, and install versions that are known."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
CONSTRAINTS = (ROOT / "constraints.txt", ROOT / "constraints-cuda.txt")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def read_pins(path: Path) -> dict[str, str]:
    """The versions of a constraints file by the name of the package."""
    pins = (line.split("==") for line in path.read_text().split())
    return {canonicalize_name(name): version for name, version in pins}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    command = [Path(sysconfig.get_path("scripts")) / "hadolint", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install numpy\n")
    command = [Path(sysconfig.get_path("scripts")) / "hadolint", tmp_path / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3013" in done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_label_has_the_version_of_the_package(path: Path) -> None:
    (version,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "evalmode" / "__init__.py").read_text(), re.MULTILINE)
    assert re.findall(r"^ARG VERSION=(.+)$", path.read_text(), re.MULTILINE) == [version]
    assert 'org.opencontainers.image.version="$VERSION"' in path.read_text()


def test_the_dockerfiles_differ_only_in_what_the_images_are_for() -> None:
    labels, bases = (
        [re.findall(pattern, path.read_text(), re.MULTILINE) for path in DOCKERFILES]
        for pattern in (r'image\.((?:version|revision|licenses)="[^"]*")', r"^ARG BASE=(.*)$")
    )
    assert labels[0] == labels[1]
    assert len(labels[0]) == 3
    assert bases[0] == bases[1]
    assert len(bases[0]) == 1


def test_both_builds_of_onnxruntime_have_the_same_version_within_the_bounds() -> None:
    cpu, gpu = (
        read_pins(path)[name] for path, name in zip(CONSTRAINTS, ("onnxruntime", "onnxruntime-gpu"), strict=True)
    )
    assert cpu == gpu
    (bound,) = (Requirement(one) for one in EXTRAS["serve-cuda"] if one.startswith("onnxruntime-gpu"))
    assert gpu in bound.specifier


def test_no_package_is_pinned_by_both_files_of_constraints() -> None:
    assert not read_pins(CONSTRAINTS[0]).keys() & read_pins(CONSTRAINTS[1]).keys()


@pytest.mark.timeout(900)
def test_the_constraints_name_all_that_the_cuda_image_installs(tmp_path: Path) -> None:
    """pip reads the metadata of each package from the index, and downloads none."""
    given = [part for path in CONSTRAINTS for part in ("--constraint", path)]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", *given]
    subprocess.run([*command, "--report", tmp_path / "report", f"{ROOT}[serve-cuda,native]"], check=True)
    found = [one["metadata"] for one in json.loads((tmp_path / "report").read_text())["install"]]
    resolved = {canonicalize_name(one["name"]): one["version"] for one in found}
    del resolved["evalmode"]
    pins = read_pins(CONSTRAINTS[0]) | read_pins(CONSTRAINTS[1])
    assert {name: pins.get(name) for name in resolved} == resolved
    assert read_pins(CONSTRAINTS[1]).keys() <= resolved.keys()  # none is left from a former version
