"""The page of ``evalmode compare``: one HTML file with the images whose predicted label changes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from evalmode.artifact.repository import ARTIFACT_FILE, NAME, VERSION
from evalmode.certification.compare import Changed, Comparison
from evalmode.certification.compare_advice import list_advice
from evalmode.certification.design.rendering import embed, render_page
from evalmode.certification.design.steps import Command, quote_path
from evalmode.files import write_atomically
from evalmode.images.formats import FORMATS
from evalmode.images.pixels import decode_whole
from evalmode.limits import OWN_IMAGES

MAX_PICTURES = 200
SIDE = 128  # pixels, of the longer side of an image on the page


@dataclass(frozen=True)
class Compared:
    """What was compared.

    Attributes:
        old: The file of the old artifact.
        new: The file of the new one.
        images: The folder of labelled images.
    """

    old: Path
    new: Path
    images: Path


class Group(NamedTuple):
    """Images whose prediction changes in the same way, with their pictures."""

    id: str
    total: int
    pictures: list[tuple[Changed, str]]


def write_page(path: Path, comparison: Comparison, compared: Compared) -> None:
    """Write a self-contained HTML page, whole or not at all.

    Args:
        path: The file to write.
        comparison: What to show.
        compared: The files and the images that were compared.

    Raises:
        OSError: The file cannot be written, or an image cannot be read.
    """
    facts = {
        "comparison": comparison,
        "compared": compared,
        "old": name_artifact(compared.old),
        "new": name_artifact(compared.new),
        "now": datetime.now(UTC),
        "gained": comparison.gained,
        "lost": comparison.lost,
        "labels": comparison.labels_by_loss,
        "groups": _show_groups(comparison.changed),
        "advice": list_advice(comparison),
        "to_type": _list_commands(compared),
    }
    write_atomically(path, render_page("evalmode.certification", "page.html.j2", facts))


def name_artifact(path: Path) -> str:
    """Name an artifact: ``pets/2`` in a model repository, and by its path elsewhere.

    Args:
        path: The file.
    """
    version, name = path.absolute().parent, path.absolute().parent.parent.name
    published = path.name == ARTIFACT_FILE and VERSION.fullmatch(version.name) and NAME.fullmatch(name)
    return f"{name}/{version.name}" if published else str(path)


def _list_commands(compared: Compared) -> list[Command]:
    """List the commands that refuse a model that is less accurate, and that return to the old version."""
    old, new, images = map(quote_path, (compared.old, compared.new, compared.images))
    gate = f"evalmode compare {old} {new} --images {images} --max-accuracy-drop 0%"
    commands = [Command("in a pipeline: exit with 1 if the new model is less accurate on these images", gate)]
    if "/" in (name := name_artifact(compared.new)) and name != str(compared.new):
        repository = quote_path(compared.new.absolute().parent.parent.parent)
        rollback = f"evalmode rollback {name.partition('/')[0]} --repository {repository}"
        commands.append(Command("if the new model is served already: return to the version before it", rollback))
    return commands


def _show_groups(changed: list[Changed]) -> list[Group]:
    """Group the changed images: lost, gained, and wrong before and after. At most 200 are shown, losses first."""
    groups, left = [], MAX_PICTURES
    for rank, id_ in enumerate(("lost", "gained", "other")):
        own = [one for one in changed if _rank(one) == rank]
        groups.append(Group(id_, len(own), [(one, _embed(one.path)) for one in own[:left]]))
        left -= len(groups[-1].pictures)
    return groups


def _rank(changed: Changed) -> int:
    """0 for a change from right to wrong, 1 from wrong to right, 2 from wrong to wrong."""
    return 0 if changed.old == changed.label else 1 if changed.new == changed.label else 2


def _embed(path: Path) -> str:
    """An image as a data URL, decoded as it was for the models, in the size in which it is shown."""
    pixels = decode_whole(path.read_bytes(), 3, OWN_IMAGES, FORMATS)  # it passed the user's limits already
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return embed(buffer.getvalue(), "png")
