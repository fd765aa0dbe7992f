"""The training service of docker/compose.yaml passes its variables to the command; tested without a container."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from evalmode.cli.train import train

COMPOSE = (Path(__file__).parents[1] / "docker" / "compose.yaml").read_text()
# Replaces the command evalmode: records the arguments of each call.
RECORDER = """#!{python}
import json, sys
with open({calls!r}, "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
"""


TRAIN_OPTIONS = re.findall(r'TRAIN_OPTIONS="(.*?)"', COMPOSE)  # the examples in its comments


def run_training(folder: Path, **variables: str) -> list[list[str]]:
    """The calls of evalmode that the training service makes."""
    (block,) = re.findall(r"    command:\n      - \|\n((?:        .*\n)+)", COMPOSE)
    script = textwrap.dedent(block).replace("$$", "$")
    passed = dict(re.findall(r"      (\w+): \$\{\w+:-(.*)\}", COMPOSE))
    assert variables.keys() <= passed.keys()
    recorder = folder / "evalmode"
    recorder.write_text(RECORDER.format(python=sys.executable, calls=str(folder / "calls")))
    recorder.chmod(0o755)
    environment = {**passed, **variables, "PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-euc", script], cwd=folder, env=environment, check=True, timeout=60)
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", []),
        ("--image-size 64x64 --epochs 3", ["--image-size", "64x64", "--epochs", "3"]),
        ("--network 'my nets:build' --skip '*'", ["--network", "my nets:build", "--skip", "*"]),
    ],
)
def test_options_are_passed_to_train_and_export(tmp_path: Path, options: str, expected: list[str]) -> None:
    trained, export = run_training(tmp_path, NAME="nobody", TRAIN_OPTIONS=options)
    assert (trained[:3], trained[4:]) == (["train", "/data", "--out"], expected)
    assert export == ["export", trained[3], "--repository", "/models", "--name", "nobody"]
    (tmp_path / "calls").unlink()
    _, export = run_training(tmp_path, NAME="nobody", EXPORT_OPTIONS=options)
    assert export[6:] == expected


@pytest.mark.parametrize("options", TRAIN_OPTIONS)
def test_the_example_options_exist_in_the_command(tmp_path: Path, options: str) -> None:
    trained, _ = run_training(tmp_path, NAME="nobody", TRAIN_OPTIONS=options)
    context = train.make_context("train", trained[1:])
    assert context.params["image_size"] == (64, 64)
    assert context.params["epochs"] == 30


def test_the_comments_show_example_options() -> None:
    assert TRAIN_OPTIONS
