"""The table of execution providers."""

from __future__ import annotations

import subprocess
import sys

from evalmode.limits import LARGEST_BATCH
from evalmode.options import list_options
from evalmode.runtime.provider import AUTO, CHOICES, CPU, PROVIDERS
from serving.config import ServeConfig


def test_users_choose_a_provider_or_auto() -> None:
    assert CHOICES == ("cpu", "cuda", AUTO)
    (option,) = (one for one in list_options(ServeConfig) if one.name == "provider")
    assert option.rules["choices"] is CHOICES
    assert [one.name for one in PROVIDERS.values()] == ["CPU", "CUDA"]


def test_one_provider_is_the_reference_of_certificates() -> None:
    assert [one for one in PROVIDERS.values() if one.is_reference] == [CPU]


def test_every_provider_replays_the_largest_batch() -> None:
    assert all(LARGEST_BATCH in one.replay_sizes for one in PROVIDERS.values())


def test_the_tables_that_a_bare_install_reads_import_no_library() -> None:
    code = (
        "import sys, evalmode.runtime.provider, evalmode.images.formats\n"
        "print(sorted({'PIL', 'numpy', 'onnx', 'onnxruntime'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
