"""Where a network lies: the file itself, and the folder of its metadata.

Folders are laid out as by Hugging Face (``model.onnx`` or ``onnx/model.onnx``), and as by Triton, KServe, TensorFlow
Serving and OpenVINO Model Server (``VERSION/model.onnx``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evalmode.artifact.repository import ARTIFACT_FILE, list_onnx_files
from evalmode.errors import UsageError


@dataclass(frozen=True)
class Place:
    """Where a network lies.

    Attributes:
        file: The ONNX file.
        folder: The folder of its metadata.
    """

    file: Path
    folder: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that metadata may be in: that of the metadata, and that of the file."""
        return tuple(dict.fromkeys((self.folder, self.file.parent)))


def find_place(what: Path) -> Place:
    """Find the network and its metadata.

    Args:
        what: An ONNX file, or a folder with one.

    Returns:
        The place.

    Raises:
        UsageError: The folder holds no ONNX file, or several.
    """
    if not what.is_dir():
        inner = what.parent.name == "onnx" or _is_version(what.parent)
        return Place(what, what.parent.parent if inner else what.parent)
    candidates = [one for folder in (what, what / "onnx") if (one := _find_model(folder))]
    versions = sorted(
        (one for one in what.iterdir() if _is_version(one) and one.is_dir()), key=lambda one: int(one.name)
    )
    if versions and (newest := _find_model(versions[-1])):
        candidates.append(newest)
    if len(candidates) > 1:
        raise UsageError(f"{what} holds {', '.join(map(str, candidates))}: name the file")
    if not candidates:
        raise UsageError(
            f"{what} holds no {ARTIFACT_FILE}, onnx/{ARTIFACT_FILE} or VERSION/{ARTIFACT_FILE}: name the ONNX file, or "
            "export one"
        )
    return Place(candidates[0], what)


def _find_model(folder: Path) -> Path | None:
    """``model.onnx`` of a folder, else its only ONNX file; None if it has none."""
    if (folder / ARTIFACT_FILE).is_file():
        return folder / ARTIFACT_FILE
    files = list_onnx_files(folder)
    if len(files) > 1:
        raise UsageError(f"{folder} holds {', '.join(one.name for one in files[:5])}: name the file")
    return files[0] if files else None


def _is_version(folder: Path) -> bool:
    return folder.name.isascii() and folder.name.isdigit()
