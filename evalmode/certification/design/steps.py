"""What a page asks for next: findings with what to change, and commands to type."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from evalmode.artifact.repository import ARTIFACT_FILE, NAME

REPOSITORY = Path("models")


@dataclass(frozen=True)
class Advice:
    """A finding, and what to do about it.

    Attributes:
        finding: The finding, with its figure.
        action: What to do.
        section: The id of the section of the page that shows it.
        is_serious: Whether something is wrong that must be mended before the model is used.
    """

    finding: str
    action: str
    section: str
    is_serious: bool = False


class Command(NamedTuple):
    """A command to type, with its purpose in words."""

    purpose: str
    command: str


def quote_path(path: Path) -> str:
    """Return a path as it is typed in a shell: relative to the working directory, if it is inside.

    Args:
        path: The path.
    """
    inside = path.is_absolute() and path.is_relative_to(Path.cwd())
    shown = str(path.relative_to(Path.cwd()) if inside else path)
    return shlex.quote(f"./{shown}" if shown.startswith("-") else shown)


def propose_model(text: str) -> tuple[str, Path]:
    """Propose a name for a model, and state where its first version is published in the repository ``models``.

    Args:
        text: What to name it by, such as the name of a data set; any characters.

    Returns:
        A name that a model repository allows, and the path of ``model.onnx``.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:128]
    name = name if NAME.fullmatch(name) else "model"
    return name, REPOSITORY / name / "1" / ARTIFACT_FILE


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 image``, ``2 images``.

    Args:
        number: The number, at least 0.
        noun: The noun in the singular.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
