"""OpenVINO Model Server's folder: ``NAME/VERSION/model.onnx``, and ``config.json`` with all models.

Source: https://docs.openvino.ai/2025/model-server/ovms_docs_serving_model.html, where the folder is mounted at /models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evalmode.artifact.repository import ARTIFACT_FILE
from evalmode.deployment.release import File, Release
from evalmode.errors import UsageError

CONFIG = "config.json"
MOUNTED = "/models"


def list_files(release: Release, folder: Path) -> dict[str, File]:
    """List the files of a version. The model is added to a configuration that is present.

    Args:
        release: The version.
        folder: The folder of all models.

    Returns:
        The files by path in the folder.

    Raises:
        UsageError: The present configuration is not one of this server.
        OSError: It cannot be read.
    """
    return {
        CONFIG: _extend(folder / CONFIG, release.name),
        f"{release.name}/{release.version}/{ARTIFACT_FILE}": File(release.artifact),
    }


def _extend(path: Path, name: str) -> File:
    """The configuration with a model; one that is present stays as it is, apart from a model that it lacks."""
    present = path.read_bytes() if path.exists() else None
    config = _parse(path, present) if present is not None else {"model_config_list": []}
    models = config["model_config_list"]
    if present is not None and any(_read_name(entry) == name for entry in models):
        return File(present)
    models.append({"config": {"name": name, "base_path": f"{MOUNTED}/{name}"}})
    return File((json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(), extends=present)


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    """Parse a configuration.

    Raises:
        UsageError: It has no list of models.
    """
    try:
        config = json.loads(content)
        if isinstance(config["model_config_list"], list):
            return dict(config)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise UsageError(f"{path} has no list model_config_list: move it away, or name another folder: --also ovms=DIR")


def _read_name(entry: Any) -> object:
    """The name of the model of an entry; None if it has none."""
    config = entry.get("config") if isinstance(entry, dict) else None
    return config.get("name") if isinstance(config, dict) else None
