"""The pictures of the report in the documents are small, and are made by a command of the repository."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from docs.make_pictures import IMAGES, SCHEMES, SIZE, compress

SCRIPT = Path(__file__).parents[1] / "docs" / "make_pictures.py"
MAX_BYTES = 200_000


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_picture_has_the_size_of_the_window_and_loads_fast(scheme: str) -> None:
    path = IMAGES / f"report-{scheme}.png"
    assert path.stat().st_size < MAX_BYTES
    picture = Image.open(path)
    assert picture.size == SIZE
    brightness = picture.convert("L").resize((1, 1)).getpixel((0, 0))
    assert isinstance(brightness, int)
    assert (brightness > 127) == (scheme == "light")


def test_a_palette_keeps_the_pixels_of_text_and_lines() -> None:
    picture = Image.new("RGB", (400, 300), "#fbfaf7")
    ImageDraw.Draw(picture).rectangle((20, 20, 200, 200), "#2f65a7", "#1c2226", 3)
    shown = Image.open(io.BytesIO(compress(picture)))
    assert shown.mode == "P"
    assert shown.convert("RGB").tobytes() == picture.tobytes()


def test_a_missing_browser_is_one_line() -> None:
    done = subprocess.run([sys.executable, SCRIPT], env={"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("no browser is installed: looked for chromium")
    assert done.stderr.count("\n") == 1
