"""Strict validation of ServiceMonitors.

The npm package @kubernetes-models/prometheus-operator has their types and schemas.
Its schemas allow unknown fields, so TypeScript's compiler checks the names of fields by its types.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.manifests.schemas import Object

NODE = Path(sys.prefix) / "node"  # make test-manifests installs the packages there
TYPE = "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor"
COMPILE = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022")


def find_errors(monitors: list[Object]) -> dict[int, str]:
    """Return the error of each invalid ServiceMonitor, by its index."""
    return _find_wrong_names(monitors) | _find_wrong_values(monitors)


def _find_wrong_names(monitors: list[Object]) -> dict[int, str]:
    """One monitor per line, so that the line of an error is that of its monitor."""
    lines = [f'import type {{ IServiceMonitor }} from "{TYPE}";']
    lines += [f"export const m{index}: IServiceMonitor = {json.dumps(one)};" for index, one in enumerate(monitors)]
    (NODE / "monitors.ts").write_text("\n".join(lines))
    done = _run(str(NODE / "node_modules" / ".bin" / "tsc"), *COMPILE, "monitors.ts")
    found = re.findall(r"^monitors\.ts\((\d+),\d+\): error (.*)", done.stdout, re.MULTILINE)
    assert bool(found) == bool(done.returncode), done.stdout + done.stderr
    return {int(line) - 2: error for line, error in found}


def _find_wrong_values(monitors: list[Object]) -> dict[int, str]:
    shutil.copy(Path(__file__).with_name("monitors.mjs"), NODE)
    done = _run("node", "monitors.mjs", given=json.dumps(monitors))
    assert done.returncode == 0, done.stderr
    return {index: error for index, error in enumerate(json.loads(done.stdout)) if error}


def _run(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=NODE, input=given, capture_output=True, text=True, timeout=120)
