"""The page of ``evalmode compare``: one HTML file with the images whose predicted label changes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from evalmode.certification.compare import Changed, Comparison
from evalmode.files import write_atomically
from evalmode.images.formats import FORMATS
from evalmode.images.pixels import decode_whole
from evalmode.limits import OWN_IMAGES

MAX_PICTURES = 200
SIDE = 128  # pixels, of the longer side of an image on the page


def write_page(path: Path, comparison: Comparison, old: str, new: str) -> None:
    """Write a self-contained HTML page, whole or not at all.

    Args:
        path: The file to write.
        comparison: What to show.
        old: The name of the old artifact on the page.
        new: The name of the new one.

    Raises:
        OSError: The file cannot be written, or an image cannot be read.
    """
    templates = Environment(
        loader=PackageLoader("evalmode.certification", "."), autoescape=True, undefined=StrictUndefined
    )
    gained = sum(label.gained for label in comparison.labels)
    lost = sum(label.lost for label in comparison.labels)
    shown = sorted(comparison.changed, key=_rank)[:MAX_PICTURES]
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
    """0 for a change from right to wrong, 1 from wrong to right, 2 from wrong to wrong."""
    return 0 if changed.old == changed.label else 1 if changed.new == changed.label else 2


def _embed(path: Path) -> str:
    """An image as a data URI, decoded as it was for the models, in the size in which it is shown."""
    pixels = decode_whole(path.read_bytes(), 3, OWN_IMAGES, FORMATS)  # it passed the user's limits already
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
