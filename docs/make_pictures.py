"""Makes the pictures of the report in the documents: trains on the digits, and photographs ``report.html``.

``python docs/make_pictures.py`` writes ``docs/images/report-light.png`` and ``report-dark.png``. It needs the extra
``train`` and Chromium; the font Inter makes the pictures equal on every machine.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCHEMES = {"light": "1", "dark": "0"}  # values of the browser's setting preferredColorScheme
SIZE = 1280, 1290  # CSS pixels: a window that shows the report down to the learning curves
COLOURS = 128  # of the palette, which is enough for text and charts
EPOCHS = 8


def main() -> None:
    """Train, and take a picture in each colour scheme."""
    browser = find_browser()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "evalmode", "train", "digits", "--epochs", str(EPOCHS), "--out", "run"]
        subprocess.run(command, cwd=folder, check=True)
        for scheme in SCHEMES:
            picture = take_picture(browser, Path(folder) / "run" / "report.html", scheme, SIZE)
            (IMAGES / f"report-{scheme}.png").write_bytes(compress(picture))


def find_browser() -> str:
    """Return the path of Chromium.

    Raises:
        SystemExit: It is not installed.
    """
    paths = filter(None, map(shutil.which, BROWSERS))
    if path := next(paths, None):
        return path
    raise SystemExit(
        f"no browser is installed: looked for {', '.join(BROWSERS)}. Install one, such as Debian's chromium"
    )


def take_picture(browser: str, page: Path, scheme: str, size: tuple[int, int]) -> Image.Image:
    """Take a picture of the top of a page.

    Args:
        browser: Path of Chromium.
        page: The HTML file.
        scheme: ``light`` or ``dark``.
        size: Width and height of the window in CSS pixels.

    Returns:
        The picture, of that size.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", f"--user-data-dir={folder}/profile"]
        options += [f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}", page.resolve().as_uri()]
        subprocess.run([browser, *options], check=True, capture_output=True, timeout=300)
        return Image.open(io.BytesIO(picture.read_bytes())).convert("RGB")


def compress(picture: Image.Image) -> bytes:
    """Encode a picture as PNG with a palette.

    Args:
        picture: The picture, RGB.
    """
    buffer = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
