"""Where the layouts of other tools are written: the option ``--also KIND[=DIR]``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalmode.errors import UsageError
from evalmode.files import check_writable, find_existing

KINDS = ("triton", "kserve", "ovms", "huggingface")
MAX_CREDIT_LENGTH = 200  # characters
# Options of every command that publishes.
AUTHOR = {"what": "who made the model; stated in the file"}
LICENSE = {"what": "name of the licence of the model, such as its SPDX identifier; stated in the file"}
ALSO = {
    "what": "also write the layout of another tool, beside the repository or in DIR: triton, kserve, ovms or "
    "huggingface; may be repeated",
    "metavar": "KIND[=DIR]",
}


@dataclass(frozen=True)
class Target:
    """A layout and its folder.

    Attributes:
        kind: One of ``KINDS``.
        folder: The folder, in which each model has a folder of its own.
    """

    kind: str
    folder: Path


def check_credits(author: str | None, licence: str | None) -> None:
    """Check the names of an author and a licence.

    Args:
        author: Who made a model; None if that is not stated.
        licence: The name of its licence; None if that is not stated.

    Raises:
        UsageError: One of them is empty, longer than ``MAX_CREDIT_LENGTH``, or not one line of printable characters.
    """
    for name, text in (("author", author), ("license", licence)):
        if text is None:
            continue
        if not text.strip() or not text.isprintable():
            raise UsageError(f"{name} {text[:40]!r} is not a line of text: write a name, or leave it out")
        if len(text) > MAX_CREDIT_LENGTH:
            raise UsageError(f"{name} has {len(text)} characters: at most {MAX_CREDIT_LENGTH} are allowed")


def check_kinds(also: Sequence[str]) -> None:
    """Check the values of ``--also``.

    Args:
        also: ``KIND`` or ``KIND=DIR`` each.

    Raises:
        UsageError: A kind is unknown or is named twice, or a folder is empty.
    """
    kinds = [text.partition("=")[0] for text in also]
    for text, kind in zip(also, kinds, strict=True):
        if kind not in KINDS:
            raise UsageError(f"--also {text}: {kind!r} is unknown: choose one of {', '.join(KINDS)}")
        if text.endswith("="):
            raise UsageError(f"--also {text} names no folder: write {text}DIR, or {kind} alone")
        if kinds.count(kind) > 1:
            raise UsageError(f"--also names {kind} twice: once is enough, as {kind} or {kind}=DIR")


def read_targets(also: Sequence[str], repository: Path) -> tuple[Target, ...]:
    """Read the values of ``--also``, and check that the folders are writable before artifacts are made at length.

    Args:
        also: ``KIND`` or ``KIND=DIR`` each. Without ``DIR`` the folder is beside the repository: ``models-triton``
            beside ``models``.
        repository: The folder of the model repository.

    Raises:
        UsageError: A value is none of these.
        OSError: A folder is not writable; the error names it.
    """
    check_kinds(also)
    targets = tuple(_read_target(text, repository) for text in also)
    for target in targets:
        check_writable(find_existing(target.folder))
    return targets


def _read_target(text: str, repository: Path) -> Target:
    """Read one value.

    Raises:
        UsageError: The repository has no name, so that no folder can be named after it.
    """
    kind, _, folder = text.partition("=")
    if folder:
        return Target(kind, Path(folder))
    named = repository if repository.name not in ("", "..") else Path(os.path.normpath(repository.absolute()))
    if not named.name:
        raise UsageError(f"--also {kind}: no folder can be beside {repository}: write {kind}=DIR")
    return Target(kind, named.with_name(f"{named.name}-{kind}"))
