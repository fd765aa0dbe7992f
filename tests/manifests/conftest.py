"""The tests of deploy/ are only collected where their tools are: in the environment of ``make test-manifests``."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("helm_python") else ["test_*.py"]
