"""Finding the images of a folder, and reading labelled images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evalmode.certification.images import read_labelled
from evalmode.cli.sources import Source
from evalmode.errors import UsageError
from evalmode.images.folders import describe_nested, describe_unread, find_images, is_hidden, list_folder
from evalmode.images.formats import IMAGE_SUFFIXES, SERVED_FORMATS, list_suffixes
from evalmode.images.pixels import PixelContract
from evalmode.limits import Limits
from tests.conftest import as_nobody, encode, plain

CONTRACT = PixelContract(4, 4, 3)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def list_names(folder: Path, paths: tuple[Path, ...]) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


class TestFindImages:
    def test_finds_images_by_their_suffix_in_any_case(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"a{suffix}" for suffix in IMAGE_SUFFIXES), "b.JPE", "c.Jfif", "d.tga", "e.svg", "f.jxl", "g")
        found = find_images(tmp_path)
        expected = sorted([*(f"a{suffix}" for suffix in IMAGE_SUFFIXES), "b.JPE", "c.Jfif"])
        assert list_names(tmp_path, found.images) == expected
        assert list_names(tmp_path, found.others) == ["d.tga", "e.svg", "f.jxl", "g"]

    def test_finds_the_files_of_some_formats(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.PNG", "b.tif", "c.heic")
        found = find_images(tmp_path, list_suffixes(SERVED_FORMATS))
        assert (list_names(tmp_path, found.images), list_names(tmp_path, found.others)) == (
            ["a.PNG"],
            ["b.tif", "c.heic"],
        )
        (sentence,) = describe_unread(found.others, suffixes=list_suffixes(SERVED_FORMATS))
        assert "(images end in .jpg, .jpeg, .jpe, .jfif, .png, .apng, .webp, .bmp): " in sentence

    def test_searches_nested_folders_of_any_name(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.png", "a/c.png", "a/b/c/d.png", "e.jpg/f.png", "e.jpg/notes.txt")
        found = find_images(tmp_path)
        assert list_names(tmp_path, found.images) == ["a/b/c/d.png", "a/c.png", "b.png", "e.jpg/f.png"]
        assert list_names(tmp_path, found.others) == ["e.jpg/notes.txt"]

    @pytest.mark.parametrize(
        "hidden",
        [
            "._a.png",
            ".a.png",
            ".ipynb_checkpoints/a.png",
            "@eaDir/a.png/SYNOPHOTO_THUMB.jpg",
            "__MACOSX/a.png",
            "Thumbs.db",
            "THUMBS.DB",
            "desktop.ini",
            "deep/.hidden/deeper/a.png",
            "$RECYCLE.BIN/a.png",
        ],
    )
    def test_skips_hidden_and_system_files(self, tmp_path: Path, hidden: str) -> None:
        touch(tmp_path, "b.png", hidden)
        found = find_images(tmp_path)
        assert list_names(tmp_path, found.images) == ["b.png"]
        assert found.others == ()

    def test_searches_a_hidden_folder_if_it_is_the_argument(self, tmp_path: Path) -> None:
        touch(tmp_path, ".cache/a.png")
        assert len(find_images(tmp_path / ".cache").images) == 1

    def test_accepts_names_of_any_encoding(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9.png")
        touch(tmp_path, name)
        assert list_names(tmp_path, find_images(tmp_path).images) == [name]

    @pytest.mark.parametrize("forbidden", ["", "deep"])
    def test_rejects_a_folder_without_read_permission(self, readable_folder: Path, forbidden: str) -> None:
        touch(readable_folder, "deep/a.png")
        (readable_folder / forbidden).chmod(0)
        with as_nobody(), pytest.raises(UsageError, match=f"{forbidden} cannot be read: Permission denied"):
            find_images(readable_folder)
        (readable_folder / forbidden).chmod(0o755)

    def test_ends_for_circular_links(self, tmp_path: Path) -> None:
        touch(tmp_path, "a/b/c.png")
        (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
        assert list_names(tmp_path, find_images(tmp_path).images) == ["a/b/c.png"]

    def test_includes_a_broken_link_with_the_suffix_of_an_image(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
        assert len(find_images(tmp_path).images) == 1  # reading it reports the broken link

    def test_excludes_a_pipe_with_the_suffix_of_an_image(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.png")
        assert list_names(tmp_path, find_images(tmp_path).others) == ["a.png"]


def test_hidden_files_and_folders_are_not_listed(tmp_path: Path) -> None:
    touch(tmp_path, "b/x", "a/x", ".git/x", "z.txt", "Thumbs.db")
    folders, files = list_folder(tmp_path)
    assert [path.name for path in folders] == ["a", "b"]
    assert [path.name for path in files] == ["z.txt"]


def test_a_name_with_an_inner_dot_is_not_hidden() -> None:
    assert not is_hidden("a.b.png")


def test_unread_files_are_counted_and_the_first_five_are_named() -> None:
    others = [Path(f"{index}.tga") for index in range(7)]
    (sentence,) = describe_unread(others)
    assert sentence.startswith("left out 7 files that are not images (images end in .jpg, ")
    assert sentence.endswith(".heif): 0.tga, 1.tga, 2.tga, 3.tga, 4.tga and 2 more")
    assert describe_unread([], [Path("a.png")]) == ("left out 1 image outside of the labels' folders: a.png",)
    assert describe_unread([]) == ()


def test_images_in_nested_folders_are_counted_and_the_first_five_folders_are_named() -> None:
    labels = [Path("a"), Path("b")]
    deep = [Path(f"a/{index}/x.png") for index in range(7)]
    assert describe_nested([*deep, Path("b/y.png")], labels) == (
        "7 images lie in folders inside a label's folder, and have that label: a/0, a/1, a/2, a/3, a/4 and 2 more",
    )
    assert describe_nested([Path("a/x.png"), Path("b/y.png")], labels) == ()


@pytest.mark.parametrize(
    ("path", "root", "label"),
    [
        ("images/cat/dog/x.png", "images", "cat"),
        ("images/cat/dog/x.png", "images/cat", "dog"),
        ("images/cat/old/x.png", "images/cat", "cat"),
        ("images/cafe\u0301/x.png", "images", "caf\u00e9"),
        ("images/x.png", "images", None),
        ("cat/images/x.png", "cat/images", None),
        ("-", ".", None),
    ],
)
def test_the_outermost_folder_with_the_name_of_a_label_is_the_label(path: str, root: str, label: str | None) -> None:
    assert Source(Path(path), Path(root)).find_label(("cat", "dog", "caf\u00e9")) == label


class TestReadLabelled:
    def test_reads_every_format_at_every_depth_and_warns_of_other_files(self, tmp_path: Path) -> None:
        for name in ("red/a.jfif", "red/deep/b.JPE", "green/c.png", "stray.png"):
            touch(tmp_path, name)
            colour = name.partition("/")[0] if "/" in name else "blue"
            (tmp_path / name).write_bytes(encode(plain(colour), "PNG" if name.endswith("png") else "JPEG"))
        touch(tmp_path, "green/d.svg", "labels.txt", "green/._c.png", ".git/config")
        labelled = read_labelled(tmp_path, ("green", "red"), CONTRACT)
        assert list_names(tmp_path, tuple(labelled.paths)) == ["green/c.png", "red/a.jfif", "red/deep/b.JPE"]
        assert labelled.targets.tolist() == [0, 1, 1]
        assert labelled.pixels.shape == (3, 4, 4, 3)
        others, outside, nested = labelled.warnings
        assert others.endswith(f": {tmp_path / 'labels.txt'}, {tmp_path / 'green/d.svg'}")
        assert outside.endswith(f": {tmp_path / 'stray.png'}")
        assert nested.startswith("1 image lies in folders inside a label's folder, ")
        assert nested.endswith(f": {tmp_path / 'red/deep'}")

    def test_orders_images_by_their_label(self, tmp_path: Path) -> None:
        for label in ("b", "a"):
            touch(tmp_path, f"{label}/1.png")
            (tmp_path / label / "1.png").write_bytes(encode(plain("red")))
        assert read_labelled(tmp_path, ("b", "a"), CONTRACT).targets.tolist() == [0, 1]
        assert read_labelled(tmp_path, ("b", "a"), CONTRACT).paths[0] == tmp_path / "b" / "1.png"

    def test_rejects_a_damaged_image_with_its_path(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
        image = bytearray(encode(Image.fromarray(noise), "JPEG"))
        image[-700:-300] = bytes(400)
        touch(tmp_path, "red/a.jpg")
        (tmp_path / "red" / "a.jpg").write_bytes(image)
        with pytest.raises(UsageError, match=r"red/a\.jpg: image is truncated or damaged: Corrupt JPEG data"):
            read_labelled(tmp_path, ("red",), CONTRACT)

    def test_rejects_an_image_over_a_limit(self, tmp_path: Path) -> None:
        touch(tmp_path, "red/a.png")
        (tmp_path / "red" / "a.png").write_bytes(encode(plain("red")))
        with pytest.raises(UsageError, match=r"red/a\.png: image is 4x4 = 16 pixels, the limit is 15"):
            read_labelled(tmp_path, ("red",), CONTRACT, Limits(max_image_pixels=15))

    def test_rejects_a_folder_without_images_and_names_its_files(self, tmp_path: Path) -> None:
        touch(tmp_path, "red/a.tga")
        with pytest.raises(UsageError, match=r"holds no <label>/<image> .*left out 1 file .*red/a\.tga"):
            read_labelled(tmp_path, ("red",), CONTRACT)
