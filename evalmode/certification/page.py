"""The page of ``evalmode compare``: one HTML file with the pictures whose label changes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from evalmode.certification.compare import Changed, Comparison
from evalmode.files import write_atomically
from evalmode.images.pixels import decode_whole
from evalmode.limits import OWN_IMAGES

MOST_PICTURES = 200
SIDE = 128  # pixels of a picture's longer side


def write_page(path: Path, comparison: Comparison, old: str, new: str) -> None:
    """Write the page, whole or not at all; the pictures are in it.

    Args:
        path: where to.
        comparison: what to show.
        old: how to call the old artifact.
        new: how to call the new one.
    """
    templates = Environment(
        loader=PackageLoader("evalmode.certification", "."), autoescape=True, undefined=StrictUndefined
    )
    gained = sum(label.gained for label in comparison.labels)
    lost = sum(label.lost for label in comparison.labels)
    shown = sorted(comparison.changed, key=_rank)[:MOST_PICTURES]
    page = templates.get_template("page.html.j2").render(
        comparison=comparison,
        old=old,
        new=new,
        gained=gained,
        lost=lost,
        labels=sorted(comparison.labels, key=lambda label: (label.gained - label.lost, -label.lost)),
        pictures=[(changed, _rank(changed), _embed(changed.path)) for changed in shown],
    )
    write_atomically(path, page)


def _rank(changed: Changed) -> int:
    """0 where the change is a loss, 1 a gain, 2 from wrong to wrong."""
    return 0 if changed.old == changed.label else 1 if changed.new == changed.label else 2


def _embed(path: Path) -> str:
    """A picture as a data URI, decoded as it was for the models, no larger than it is shown."""
    picture = Image.fromarray(decode_whole(path.read_bytes(), 3, OWN_IMAGES))  # which passed the user's own limits
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
