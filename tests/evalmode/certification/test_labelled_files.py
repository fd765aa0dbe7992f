"""The labels of images come from folders or from a table, which may also choose a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from evalmode.certification.images import read_labelled
from evalmode.certification.labelled_files import LabelledFiles, list_labelled
from evalmode.errors import DataError, UsageError
from evalmode.images.pixels import PixelContract
from tests.conftest import encode, plain

LABELS = ("red", "green", "café")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images in a folder without labels."""
    folder = tmp_path / "data" / "photos"
    folder.mkdir(parents=True)
    for name, colour in (("1.png", "green"), ("2.png", "red"), ("3.png", "red"), ("4.png", "blue")):
        (folder / name).write_bytes(encode(plain(colour)))
    return folder


def write_table(path: Path, rows: Sequence[str], header: str = "file,label") -> Path:
    path.write_text("\n".join((header, *rows)), "utf-8")
    return path


def show(found: LabelledFiles) -> list[tuple[str, int]]:
    return [(path.name, target) for path, target in zip(found.paths, found.targets, strict=True)]


@pytest.mark.parametrize("written", ["photos/{}.png", "photos\\{}.png", "photos/{}", "{}.png", "{}"])
def test_a_table_names_images_by_path_or_name_with_or_without_suffix(photos: Path, written: str) -> None:
    rows = [f"{written.format(number)},{label}" for number, label in ((1, "green"), (2, "red"), (3, "red"))]
    found = list_labelled(write_table(photos.parent / "labels.csv", rows), LABELS)
    assert show(found) == [("2.png", 0), ("3.png", 0), ("1.png", 1)]
    assert (found.root, found.warnings) == (photos.parent, ())


def test_a_table_may_be_in_another_folder_than_its_images(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    rows = ["../data/photos/1.png,green", f"{photos / '2.png'},red"]
    assert show(list_labelled(write_table(tmp_path / "tables/labels.csv", rows), LABELS)) == [
        ("2.png", 0),
        ("1.png", 1),
    ]


def test_labels_match_in_any_normal_form(photos: Path) -> None:
    table = write_table(photos / "labels.csv", ["1.png,cafe\u0301", "2.png,caf\u00e9"])
    assert list_labelled(table, ("red", "caf\u00e9")).targets == list_labelled(table, ("red", "cafe\u0301")).targets
    assert list_labelled(table, ("red", "caf\u00e9")).targets == [1, 1]


@pytest.mark.parametrize(
    ("splits", "names", "chosen"),
    [
        (("train", "val", "test", "test"), ["3.png", "4.png"], "test in {}: 2 of 4 rows"),
        (("train", "valid", "train", "train"), ["2.png"], "val in {}: 1 of 4 rows"),
        (("train", "train", "train", "train"), ["1.png", "2.png", "3.png", "4.png"], "train in {}: 4 of 4 rows"),
    ],
)
def test_the_images_of_one_split_are_read_and_a_sentence_says_which(
    photos: Path, splits: Sequence[str], names: list[str], chosen: str
) -> None:
    rows = [f"{number}.png,red,{split}" for number, split in enumerate(splits, 1)]
    table = write_table(photos / "labels.csv", rows, "file,label,split")
    found = list_labelled(table, LABELS)
    assert [name for name, _ in show(found)] == names
    assert found.warnings == (f"the images are those of the split {chosen.format(table)}",)


def test_the_label_of_a_row_in_another_split_may_be_unknown(photos: Path) -> None:
    table = write_table(photos / "labels.csv", ["1.png,green,test", "2.png,emu,train"], "file,label,split")
    assert show(list_labelled(table, LABELS)) == [("1.png", 1)]


def test_rows_that_are_left_out_are_named(photos: Path) -> None:
    table = write_table(photos / "labels.csv", ["1.png,green", "2.png,", "1.png,green"])
    assert list_labelled(table, LABELS).warnings == (
        f"left out 1 row of {table} that have no label: line 3 (2.png)",
        f"left out 1 row of {table} that repeat another row: line 4 (1.png)",
    )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            ["1.png,green", "2.png,emu", "3.png,owl"],
            "has labels that the network does not have: emu, owl; labels: red, ",
        ),
        (["1.png,green", "5.png,red"], r"1 of 2 rows of .*labels\.csv name no image: line 3 \(5\.png\): correct"),
        (["1.png,green", "1.png,red"], r"1\.png has two labels, the second one in .*labels\.csv, line 3: an image"),
        (["1.png,"], r"labels\.csv has no row with a file and a label"),
        ([], r"labels\.csv has no row with a file and a label"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(photos: Path, rows: Sequence[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        list_labelled(write_table(photos / "labels.csv", rows), LABELS)


def test_an_image_in_place_of_a_table_is_refused(photos: Path) -> None:
    with pytest.raises(DataError, match=r"1\.png, line 1 is not utf-8: expected a table of files and labels in UTF-8"):
        list_labelled(photos / "1.png", LABELS)


def test_a_folder_of_images_without_labels_is_refused_with_both_remedies(photos: Path) -> None:
    with pytest.raises(UsageError, match=r"into a folder named by its label, or give a table of files and labels$"):
        list_labelled(photos, LABELS)


def test_images_of_a_table_are_decoded(photos: Path) -> None:
    table = write_table(photos / "labels.csv", ["1.png,green", "2.png,red"])
    found = read_labelled(table, LABELS, PixelContract(4, 4, 3))
    assert found.pixels[:, 0, 0].tolist() == [[255, 0, 0], [0, 128, 0]]
    assert (found.targets.tolist(), found.root) == ([0, 1], photos)
