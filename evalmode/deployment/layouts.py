"""The layouts of other tools, and how a version is written in them beside the model repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalmode.artifact.publishing import find_next_version, publish
from evalmode.deployment import hugging_face, kserve, ovms, triton
from evalmode.deployment.release import File, Release
from evalmode.deployment.targets import Target
from evalmode.deployment.writing import choose_files, write_files

# By the kinds of ``Target``: the files of a version by path in the folder, which may hold earlier versions.
LAYOUTS: Mapping[str, Callable[[Release, Path], dict[str, File]]] = {
    "triton": triton.list_files,
    "kserve": kserve.list_files,
    "ovms": ovms.list_files,
    "huggingface": hugging_face.list_files,
}


@dataclass(frozen=True)
class LaidOut:
    """A version that was laid out for another tool.

    Attributes:
        kind: The layout, one of ``evalmode.deployment.targets.KINDS``.
        path: The folder of the model.
        kept: Files that people had edited, which were not changed.
    """

    kind: str
    path: Path
    kept: tuple[Path, ...]

    def describe(self) -> str:
        """One line for people, and one for each file that was kept."""
        return "\n".join(
            (f"also      {self.path}, for {self.kind}", *(f"kept      {path}, which was edited" for path in self.kept))
        )

    def to_json(self) -> dict[str, object]:
        """The layout as JSON values."""
        return {"layout": self.kind, "path": str(self.path), "kept": [str(path) for path in self.kept]}


def publish_everywhere(
    repository: Path, name: str, artifact: bytes, targets: Sequence[Target], report: Path | None = None
) -> tuple[Path, tuple[LaidOut, ...]]:
    """Publish an artifact as the next version of a model, and write it in the layouts of other tools.

    Whether all layouts can be written is checked before the artifact is published.

    Args:
        repository: The folder of the model repository; it is created if it is missing.
        name: The model's name.
        artifact: The bytes of ``model.onnx``.
        targets: The layouts and their folders.
        report: The report of the training; None if there is none, or it may not be shown.

    Returns:
        The path of the published artifact, and the layouts.

    Raises:
        NameInvalid: The name is not allowed.
        OSError: A file cannot be read or written.
        UsageError: A file of a layout exists with another content, or the folder holds the versions of one model.
    """
    release = Release(name, find_next_version(repository, name), artifact, report)
    for target in targets:
        _choose(target, release)
    path = publish(repository, name, artifact)
    version = int(path.parent.name)
    if version != release.version:  # another publisher took the number first
        release = replace(release, version=version)
    return path, tuple(_lay_out(target, release) for target in targets)


def _choose(target: Target, release: Release) -> tuple[dict[str, bytes], tuple[Path, ...]]:
    """Choose the files to write and those to keep.

    Raises:
        UsageError: A file exists with another content.
    """
    files = LAYOUTS[target.kind](release, target.folder)
    return choose_files(target.folder, files, f"--also {target.kind}=DIR")


def _lay_out(target: Target, release: Release) -> LaidOut:
    """Write a version in a layout."""
    contents, kept = _choose(target, release)
    write_files(target.folder, contents)
    return LaidOut(target.kind, target.folder / release.name, kept)
