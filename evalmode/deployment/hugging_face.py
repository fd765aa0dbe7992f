"""A repository for the hub of Hugging Face: ``NAME/VERSION/`` with the model, its card, its labels and its report.

There is no ``preprocessor_config.json``: the graph takes uint8 (N, H, W, C), and no image processor of transformers
makes such tensors, or has all rules of the pixel contract.
"""

from __future__ import annotations

import json
from pathlib import Path

from evalmode.artifact.repository import ARTIFACT_FILE
from evalmode.deployment.model_card import write_card
from evalmode.deployment.release import File, Release

REPORT = "report.html"


def list_files(release: Release, folder: Path) -> dict[str, File]:
    """List the files of a version.

    Args:
        release: The version.
        folder: The folder of all models.

    Returns:
        The files by path in the folder.

    Raises:
        OSError: The report cannot be read.
    """
    files = {
        "config.json": File(_write_labels(release)),
        ARTIFACT_FILE: File(release.artifact),
    }
    if release.report:
        files[REPORT] = File(release.report.read_bytes())
    files["README.md"] = File(write_card(release, REPORT if release.report else "").encode())
    return {f"{release.name}/{release.version}/{name}": file for name, file in files.items()}


def _write_labels(release: Release) -> bytes:
    """The labels, as the configuration of a classifier of transformers names them."""
    labels = release.classifier.labels if release.classifier else ()
    config = {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    return (json.dumps(config if labels else {}, indent=2) + "\n").encode()
