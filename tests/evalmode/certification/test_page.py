"""The page of ``compare`` shows every changed image as the models received it."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evalmode.certification.compare import Changed, Comparison, LabelChange
from evalmode.certification.design.rendering import STYLE
from evalmode.certification.page import SIDE, Compared, name_artifact, write_page
from evalmode.images.pixels import decode_whole
from evalmode.limits import OWN_IMAGES
from tests.conftest import encode, plain

DIGESTS = "sha256:" + "0a" * 32, "sha256:" + "1b" * 32
OLD, NEW = Path("models/colours/1/model.onnx"), Path("models/colours/2/model.onnx")


def show(image: bytes, folder: Path) -> Image.Image:
    """Write a page with an image, and return the picture on it."""
    (folder / "image").write_bytes(image)
    changed = [Changed(folder / "image", "red", "red", "blue")]
    labels = [LabelChange("red", 1, 0, 1)]
    comparison = Comparison(1, (1.0, 0.0), changed, labels, 1.0, 1.0, (), DIGESTS)
    write_page(folder / "page.html", comparison, Compared(OLD, NEW, folder))
    (shown,) = re.findall(r"data:image/png;base64,([^\"]+)", (folder / "page.html").read_text())
    return Image.open(io.BytesIO(base64.b64decode(shown)))


def long_text() -> bytes:
    text = PngInfo()
    text.add_text("Comment", "x" * 2_000_000, zip=True)
    return encode(plain("red"), pnginfo=text)


IMAGES = {
    "two megabytes of text": long_text,
    "a damaged EXIF block": lambda: encode(plain("red"), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\x7f\0\2" + bytes(24)),
    "transparent": lambda: encode(plain((255, 0, 0, 0), mode="RGBA")),
    "16 bits": lambda: encode(Image.fromarray(np.full((4, 4), 30_000, np.uint16))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_has_the_pixels_that_the_models_received(name: str, tmp_path: Path) -> None:
    image = IMAGES[name]()
    np.testing.assert_array_equal(np.asarray(show(image, tmp_path)), decode_whole(image, 3, OWN_IMAGES))


def test_a_large_picture_is_reduced(tmp_path: Path) -> None:
    assert show(encode(plain("red", (600, 300))), tmp_path).size == (SIDE, SIDE // 2)


def write(folder: Path, *labels: LabelChange, p: float = 0.5, **changed: object) -> str:
    """Write the page of a comparison without changed images, and return it."""
    comparison = Comparison(500, (0.9, 0.91), [], list(labels), p, 1.0, ("3 files were not read",), DIGESTS)
    path = folder / "page.html"
    write_page(path, replace(comparison, **changed), Compared(OLD, NEW, Path("my photos")))  # type: ignore[arg-type]
    return path.read_text("utf-8")


def findings_of(page: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r'<h3><a href="#\w+">(.*?)</a></h3>', page)]


def test_the_title_names_both_models_the_images_and_the_new_file(tmp_path: Path) -> None:
    page = write(tmp_path, LabelChange("red", 1, 0, 0))
    assert '<h1 id="title">colours/2 compared with colours/1</h1>' in page
    title = rf"<title>colours/2 compared with colours/1 · my photos · \d+ \w+ 20\d\d · {DIGESTS[1][:19]}</title>"
    assert re.search(title, page)
    assert all(page.count(digest) == 2 for digest in DIGESTS)  # whole, below the short one and at the end
    assert "3 files were not read" in page


def test_the_page_says_which_images_make_an_accuracy_too_high(tmp_path: Path) -> None:
    page = " ".join(write(tmp_path, LabelChange("red", 1, 0, 0)).split())
    assert "Images that a model was trained on make its accuracy too high: keep some apart before the" in page


def test_a_file_outside_a_repository_is_named_by_its_path() -> None:
    assert name_artifact(Path("models/colours/12/model.onnx")) == "colours/12"
    assert name_artifact(Path("keras.onnx")) == "keras.onnx"
    assert name_artifact(Path("models/colours/new/model.onnx")) == "models/colours/new/model.onnx"


@pytest.mark.parametrize(
    ("gained", "lost", "p", "wanted"),
    [
        (0, 0, 1.0, "Both models classify the same images correctly."),
        (4, 4, 1.0, "Neither model is better: 4 images gained, 4 lost."),
        (5, 4, 0.9, "The difference may be chance: 5 images gained, 4 lost."),
        (40, 4, 0.001, "The new model is better: 40 images gained, 4 lost."),
        (4, 40, 0.001, "The new model is worse: 4 images gained, 40 lost."),
    ],
)
def test_the_verdict_follows_from_gains_losses_and_chance(
    gained: int, lost: int, p: float, wanted: str, tmp_path: Path
) -> None:
    page = write(tmp_path, LabelChange("red", 500, gained, lost), p=p)
    assert findings_of(page)[0] == wanted
    assert ('class="serious"' in page) == (lost > 20)


def test_a_label_that_loses_beyond_chance_is_named_even_if_the_whole_gains(tmp_path: Path) -> None:
    changes = [LabelChange("red", 100, 1, 12), LabelChange("blue", 100, 40, 0), LabelChange("<b>", 100, 0, 2)]
    found = findings_of(write(tmp_path, *changes, p=0.001))
    assert found == ["The new model is better: 41 images gained, 14 lost.", "red loses 12 of 100 images and gains 1."]


def test_a_slower_model_is_named(tmp_path: Path) -> None:
    page = write(tmp_path, LabelChange("red", 1, 0, 0), latency_ratio=1.5)
    assert "A single image takes 1.50 times as long." in findings_of(page)
    assert len(findings_of(write(tmp_path, LabelChange("red", 1, 0, 0), latency_ratio=1.1))) == 1


def test_the_commands_have_the_paths_that_were_compared(tmp_path: Path) -> None:
    page = html.unescape(re.sub(r"</?b>", "", write(tmp_path, LabelChange("red", 1, 0, 0))))
    assert f"evalmode compare {OLD} {NEW} --images 'my photos' --max-accuracy-drop 0%" in page
    assert "--max-changed" not in page  # a limit above the change of now would pass a model that is worse
    assert "evalmode rollback colours --repository models" in page


def test_the_repository_is_found_from_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "colours").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models" / "colours")
    comparison = Comparison(500, (0.9, 0.91), [], [LabelChange("red", 1, 0, 0)], 0.5, 1.0, (), DIGESTS)
    compared = Compared(Path("1/model.onnx"), Path("2/model.onnx"), Path("images"))
    write_page(tmp_path / "page.html", comparison, compared)
    page = html.unescape(re.sub(r"</?b>", "", (tmp_path / "page.html").read_text("utf-8")))
    assert f"evalmode rollback colours --repository {tmp_path / 'models'}" in page


def test_changed_images_are_grouped_and_losses_are_shown_first(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(encode(plain("red")))
    changed = [Changed(path, "red", "blue", "red")] * 150 + [Changed(path, "red", "red", "blue")] * 120
    page = write(tmp_path, LabelChange("red", 270, 150, 120), changed=changed)
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    assert [sections[name].count("<img ") for name in ("lost", "gained", "other")] == [120, 80, 0]
    assert "Gained: 150" in sections["gained"]
    assert "80 of them are shown" in sections["gained"]
    assert "None." in sections["other"]


def test_has_the_style_of_the_report_and_no_other(tmp_path: Path) -> None:
    page = write(tmp_path, LabelChange("red", 1, 0, 0))
    assert re.findall(r"<style>(.*?)</style>", page, re.DOTALL) == [f"\n{STYLE.read_text('utf-8')}"]
    assert "://" not in page
    assert "<script" not in page
