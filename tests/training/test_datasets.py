"""Labelled images as arrays: the embedded digits, folders of every layout, and refusals with their messages."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import psutil
import pytest
from PIL import Image

from evalmode.errors import DataError, UsageError
from evalmode.images.pixels import PixelContract, Resize, decode_image
from evalmode.limits import Limits
from tests.conftest import as_nobody
from training.datasets import Dataset, ReadOptions, Split, load_dataset
from training.datasets.memory import available_memory_bytes

SPLITS = ("train", "val", "test")


def write_images(
    folder: Path, count: int, size: tuple[int, int] = (5, 4), mode: str = "L", suffix: str = ".png"
) -> list[Path]:
    """Write images of noise, all different; ``size`` is (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([crc32("/".join(folder.parts[-2:]).encode()), count])
    paths = [folder / f"{index:03d}{suffix}" for index in range(count)]
    for path in paths:
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return paths


def write_classes(folder: Path, count: int = 20, labels: Sequence[str] = ("cat", "dog"), **options: object) -> Path:
    for label in labels:
        write_images(folder / label, count, **options)  # type: ignore[arg-type]
    return folder


def sizes(dataset: Dataset) -> dict[str, int]:
    return {name: len(getattr(dataset, name)) for name in SPLITS}


def images_of(*splits: Split) -> Counter[bytes]:
    return Counter(image.tobytes() for split in splits for image in split.images)


def read_pixels(path: Path) -> np.ndarray:
    """Read the pixels of a small PNG with Pillow alone: (H, W) or (H, W, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture)


# The digits


def test_digits_are_1797_grey_images_of_8x8_with_ten_labels(digits: Dataset) -> None:
    assert sizes(digits) == {"train": 1295, "val": 143, "test": 359}
    assert sum(sizes(digits).values()) == 1797
    assert digits.contract == PixelContract(8, 8, 1)
    assert digits.labels == tuple("0123456789")


def test_digits_are_scaled_to_the_full_range_of_uint8(digits: Dataset) -> None:
    values = np.unique(digits.train.images)
    assert values.dtype == np.uint8
    assert len(values) == 17
    assert (values[0], values[8], values[16]) == (0, 128, 255)


def test_every_digit_is_in_exactly_one_split(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    whole = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    assert images_of(digits.train, digits.val, digits.test) == Counter(image.tobytes() for image in whole)


def test_digits_keep_their_labels(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    label_of = {
        np.rint(image * (255 / 16)).astype(np.uint8).tobytes(): target
        for image, target in zip(bunch.images, bunch.target, strict=True)
    }
    for split in (digits.train, digits.val, digits.test):
        assert [label_of[image.tobytes()] for image in split.images] == split.targets.tolist()


def test_every_split_of_digits_has_every_label_in_the_same_share(digits: Dataset) -> None:
    whole = sum(np.bincount(getattr(digits, name).targets, minlength=10) for name in SPLITS) / 1797
    for name in SPLITS:
        split = getattr(digits, name)
        assert np.abs(np.bincount(split.targets, minlength=10) - whole * len(split)).max() < 2


def test_digits_are_split_equally_for_the_same_seed(digits: Dataset) -> None:
    assert load_dataset("digits", seed=0).digest() == digits.digest()


def test_digits_are_split_differently_for_another_seed(digits: Dataset) -> None:
    other = load_dataset("digits", seed=1)
    assert other.digest() != digits.digest()
    assert images_of(other.test) != images_of(digits.test)
    assert sizes(other) == sizes(digits)


def test_digits_cannot_be_resized() -> None:
    assert load_dataset("digits", ReadOptions((8, 8))).contract == PixelContract(8, 8, 1)
    with pytest.raises(DataError, match="the images of digits are 8x8 and are not resized: omit --image-size"):
        load_dataset("digits", ReadOptions((16, 16)))


def test_a_folder_named_digits_takes_precedence_over_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert load_dataset("digits").labels == ("cat", "dog")


# Layouts


def test_a_folder_of_classes_is_carved_into_three_splits(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_classes(tmp_path)))
    assert sizes(dataset) == {"train": 32, "val": 4, "test": 4}


def test_a_folder_with_train_alone_is_carved_into_three_splits(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    dataset = load_dataset(str(tmp_path))
    assert dataset.labels == ("cat", "dog")
    assert sizes(dataset) == {"train": 32, "val": 4, "test": 4}


def test_a_folder_with_train_and_test_has_val_carved_from_train(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", 3)
    dataset = load_dataset(str(tmp_path))
    assert sizes(dataset) == {"train": 36, "val": 4, "test": 6}
    files = sorted((tmp_path / "test").glob("*/*"))
    assert [image.tobytes() for image in dataset.test.images] == [read_pixels(path).tobytes() for path in files]


def test_a_folder_with_train_and_val_has_test_carved_from_train(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val", 3)
    dataset = load_dataset(str(tmp_path))
    assert sizes(dataset) == {"train": 36, "val": 6, "test": 4}
    files = sorted((tmp_path / "val").glob("*/*"))
    assert [image.tobytes() for image in dataset.val.images] == [read_pixels(path).tobytes() for path in files]


def test_a_folder_with_all_three_splits_is_used_unchanged(tmp_path: Path) -> None:
    for count, name in enumerate(SPLITS, 1):
        write_classes(tmp_path / name, count)
    dataset = load_dataset(str(tmp_path))
    assert sizes(dataset) == {"train": 2, "val": 4, "test": 6}
    for name in SPLITS:
        files = sorted((tmp_path / name).glob("*/*"))
        split = getattr(dataset, name)
        assert [image.tobytes() for image in split.images] == [read_pixels(path).tobytes() for path in files]
        assert [dataset.labels[target] for target in split.targets] == [path.parent.name for path in files]


def test_carved_splits_hold_every_image_once_with_its_label(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_classes(tmp_path, 10, ("ant", "bee", "cow"))))
    label_of = {read_pixels(path).tobytes(): path.parent.name for path in tmp_path.glob("*/*")}
    assert images_of(dataset.train, dataset.val, dataset.test) == Counter(label_of.keys())
    for name in SPLITS:
        split = getattr(dataset, name)
        assert [label_of[image.tobytes()] for image in split.images] == [dataset.labels[t] for t in split.targets]


def test_carved_splits_have_the_same_share_of_every_class(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_classes(tmp_path, 30, ("ant", "bee", "cow"))))
    assert np.bincount(dataset.test.targets).tolist() == [3, 3, 3]
    assert np.ptp(np.bincount(dataset.val.targets)) <= 1


def test_carving_follows_the_seed(tmp_path: Path) -> None:
    folder = str(write_classes(tmp_path))
    assert load_dataset(folder, seed=3).digest() == load_dataset(folder, seed=3).digest()
    assert images_of(load_dataset(folder, seed=3).test) != images_of(load_dataset(folder, seed=4).test)
    assert images_of(load_dataset(folder, seed=3).val) != images_of(load_dataset(folder, seed=4).val)


def test_three_images_of_a_class_are_enough_to_carve_val_and_test(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_classes(tmp_path, 3)))
    assert [np.bincount(getattr(dataset, name).targets).tolist() for name in SPLITS] == [[1, 1]] * 3


@pytest.mark.parametrize(("given", "carved"), [("val", "test"), ("test", "val")])
def test_two_images_of_a_class_are_enough_to_carve_one_split(tmp_path: Path, given: str, carved: str) -> None:
    write_classes(tmp_path / "train", 2)
    write_classes(tmp_path / given, 1)
    dataset = load_dataset(str(tmp_path))
    assert np.bincount(dataset.train.targets).tolist() == [1, 1]
    assert np.bincount(getattr(dataset, carved).targets).tolist() == [1, 1]


def test_one_image_of_a_class_is_enough_if_nothing_is_carved(tmp_path: Path) -> None:
    for name in SPLITS:
        write_classes(tmp_path / name, 1)
    assert sizes(load_dataset(str(tmp_path))) == {"train": 2, "val": 2, "test": 2}


def test_carved_images_are_not_the_first_or_last_of_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path)
    ends = {
        read_pixels(tmp_path / label / f"{n:03d}.png").tobytes() for label in ("cat", "dog") for n in (0, 1, 18, 19)
    }
    assert not set(images_of(load_dataset(str(tmp_path), seed=0).test)) <= ends


def test_images_stay_in_the_order_of_their_files_in_every_split(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_classes(tmp_path)))
    place = {read_pixels(path).tobytes(): index for index, path in enumerate(sorted(tmp_path.glob("*/*")))}
    for name in SPLITS:
        places = [place[image.tobytes()] for image in getattr(dataset, name).images]
        assert places == sorted(places)


def test_labels_are_the_sorted_folder_names(tmp_path: Path) -> None:
    assert load_dataset(str(write_classes(tmp_path, 4, ("b", "a", "B", "10", "9")))).labels == (
        "10",
        "9",
        "B",
        "a",
        "b",
    )


def test_hidden_folders_and_other_files_are_ignored(tmp_path: Path) -> None:
    write_classes(tmp_path, 4)
    write_images(tmp_path / ".thumbnails", 1)
    (tmp_path / "README.md").write_text("pets")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    dataset = load_dataset(str(tmp_path))
    assert dataset.labels == ("cat", "dog")
    assert sum(sizes(dataset).values()) == 8


def test_images_in_subfolders_of_a_class_have_its_label(tmp_path: Path) -> None:
    flat, deep = tmp_path / "flat", tmp_path / "deep"
    for label in ("cat", "dog"):
        for path in write_images(flat / label, 8):
            to = deep / label / ("day2/hall" if path.stem > "003" else ".") / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
    whole, nested = load_dataset(str(flat)), load_dataset(str(deep))
    assert images_of(nested.train, nested.val, nested.test) == images_of(whole.train, whole.val, whole.test)
    label_of = {read_pixels(path).tobytes(): path.parent.name for path in flat.glob("*/*")}
    for name in SPLITS:
        split = getattr(nested, name)
        assert [label_of[image.tobytes()] for image in split.images] == [nested.labels[t] for t in split.targets]
    assert nested.warnings == (
        "8 images lie in folders inside a label's folder, and have that label: "
        f"{deep / 'cat/day2/hall'}, {deep / 'dog/day2/hall'}",
    )


@pytest.mark.parametrize(
    ("parents", "words"),
    [
        (("train_images", "valid", "test"), "holds test and train_images and valid, and in each .*cat, dog"),
        (
            ("seg_train", "seg_test"),
            "holds seg_test and seg_train, and in each of them are folders of images .*cat, dog",
        ),
        (("seg_train/seg_train", "seg_test/seg_test"), "holds seg_test and seg_train"),
        (("fold1", "fold2", "fold3"), "holds fold1 and fold2 and fold3"),
        (("part1/Train", "part2/Train"), "holds part1 and part2"),
        (("data/train", "data/test", "more"), "data would be a label but holds splits .test, train.: give the folder"),
        (("cat/train", "cat/val", "dog/train", "dog/val"), "cat would be a label but holds splits .train, val."),
        (("train/a", "train/b"), "holds a and b, and in each of them are folders of images"),
    ],
)
def test_splits_do_not_become_labels(tmp_path: Path, parents: Sequence[str], words: str) -> None:
    for parent in parents:
        write_classes(tmp_path / parent, 3)
    with pytest.raises(DataError, match=words) as refused:
        load_dataset(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_split_next_to_unlabelled_images_does_not_become_a_label(tmp_path: Path) -> None:
    write_classes(tmp_path / "train_images", 3)
    write_images(tmp_path / "test_images", 3)
    with pytest.raises(DataError, match=r"holds train_images, and in each of them are folders .* Name split folders"):
        load_dataset(str(tmp_path))


def test_a_root_one_level_too_high_is_refused_with_the_folder_below(tmp_path: Path) -> None:
    write_classes(tmp_path / "data" / "train", 3)
    with pytest.raises(DataError, match=f"must be directly in it, not in {tmp_path / 'data'}"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    "folders",
    [
        ("cat/day1", "cat/day2", "dog/day1"),
        ("cat/left", "cat/right", "cat", "dog/left", "dog/right", "dog"),
        ("cat/siamese", "cat/persian", "dog/beagle", "dog/poodle"),
        ("cat/train", "dog"),
    ],
)
def test_folders_inside_labels_that_are_not_splits_are_read_and_named(tmp_path: Path, folders: Sequence[str]) -> None:
    for folder in folders:
        write_images(tmp_path / folder, 4)
    dataset = load_dataset(str(tmp_path))
    assert dataset.labels == ("cat", "dog")
    nested = [folder for folder in folders if "/" in folder]
    warning = next(one for one in dataset.warnings if "inside a label's folder" in one)
    assert warning.startswith(f"{4 * len(nested)} images lie in folders inside a label's folder, and have that label: ")
    assert warning.endswith(", ".join(str(tmp_path / folder) for folder in sorted(nested)))


def test_one_image_inside_a_folder_of_a_label_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 4)
    write_classes(tmp_path / "val", 4)
    write_images(tmp_path / "val" / "dog" / "old", 1)
    (warning,) = load_dataset(str(tmp_path)).warnings
    assert warning == (
        f"1 image lies in folders inside a label's folder, and has that label: {tmp_path / 'val/dog/old'}"
    )


def test_hidden_files_and_files_of_operating_systems_are_skipped(tmp_path: Path) -> None:
    write_classes(tmp_path, 4)
    before = load_dataset(str(tmp_path))
    for hidden in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git"):
        for folder in (tmp_path, tmp_path / "cat"):
            write_images(folder / hidden, 1)
    for name in ("._000.png", ".hidden.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
        for folder in (tmp_path, tmp_path / "cat"):
            (folder / name).write_bytes(b"no image")
    after = load_dataset(str(tmp_path))
    assert after.digest() == before.digest()
    assert after.warnings == ()


def test_files_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 8)
    write_classes(tmp_path / "valid", 2)
    write_images(tmp_path / "unlabelled", 2)
    for index in range(6):
        (tmp_path / "train" / "cat" / f"{index}.tga").write_bytes(b"")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]")
    (tmp_path / "train" / "stray.png").write_bytes(b"")
    (tmp_path / "valid" / "stray.jpg").write_bytes(b"")
    others, outside, folders = load_dataset(str(tmp_path)).warnings
    assert others.startswith("left out 7 files that are not images (images end in .jpg, .jpeg, ")
    assert str(tmp_path / "data.yaml") in others
    assert str(tmp_path / "train" / "cat" / "3.tga") in others
    assert others.endswith(" and 2 more")
    named = f"{tmp_path / 'train/stray.png'}, {tmp_path / 'valid/stray.jpg'}"
    assert outside == f"left out 2 images outside of the labels' folders: {named}"
    assert folders == f"left out folders that are not splits: {tmp_path / 'unlabelled'}"


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", "VALID", "dev"])
@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("test", ["test", "Testing", "TEST"])
def test_splits_are_found_by_their_usual_names(tmp_path: Path, train: str, val: str, test: str) -> None:
    for name, count in ((train, 7), (val, 3), (test, 2)):
        write_classes(tmp_path / name, count)
    dataset = load_dataset(str(tmp_path))
    assert sizes(dataset) == {"train": 14, "val": 6, "test": 4}
    assert dataset.labels == ("cat", "dog")
    assert dataset.warnings == ()


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "validation"):
        write_classes(tmp_path / name)
    with pytest.raises(DataError, match=r"holds val and validation, which are the same split \(val\)"):
        load_dataset(str(tmp_path))


def test_splits_without_a_train_folder_are_refused(tmp_path: Path) -> None:
    for name in ("valid", "test"):
        write_classes(tmp_path / name)
    with pytest.raises(DataError, match="holds test, valid but no train: name the folder of the training images train"):
        load_dataset(str(tmp_path))


def test_a_class_may_be_named_like_a_split(tmp_path: Path) -> None:
    write_classes(tmp_path, labels=("bus", "train", "test"))
    assert load_dataset(str(tmp_path)).labels == ("bus", "test", "train")


def test_a_folder_with_a_link_to_itself_is_read_once(tmp_path: Path) -> None:
    write_classes(tmp_path, 8)
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    assert sum(sizes(load_dataset(str(tmp_path))).values()) == 16


def test_a_folder_may_be_a_link(tmp_path: Path) -> None:
    write_classes(tmp_path / "elsewhere", 8)
    (tmp_path / "data").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).symlink_to(tmp_path / "elsewhere" / label)
    assert sum(sizes(load_dataset(str(tmp_path / "data"))).values()) == 16


def test_a_pipe_named_like_an_image_does_not_block(tmp_path: Path) -> None:
    write_classes(tmp_path, 8)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (warning,) = load_dataset(str(tmp_path)).warnings
    assert "pipe.png" in warning


def test_suffixes_are_accepted_in_any_case_and_for_every_supported_format(tmp_path: Path) -> None:
    write_classes(tmp_path, 4)
    write_images(tmp_path / "cat", 2, suffix=".BMP")
    write_images(tmp_path / "cat", 2, suffix=".webp")
    write_images(tmp_path / "cat", 2, suffix=".Jpeg")
    for suffix, count in ((".jfif", 1), (".JPE", 3)):
        for path in write_images(tmp_path / "dog", count, suffix=".jpg"):
            path.rename(path.with_suffix(suffix))
    for suffix in (".tif", ".TIFF", ".gif", ".avif"):
        write_images(tmp_path / "dog" / suffix[1:], 1, suffix=suffix)
    assert sum(sizes(load_dataset(str(tmp_path))).values()) == 22


def test_images_over_a_limit_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (large,) = write_images(tmp_path / "cat" / "large", 1, (50, 40))
    with pytest.raises(
        DataError, match=rf"1 of 41 images.*\n  {large}: image is 50x40 = 2000 pixels, the limit is 1999"
    ):
        load_dataset(str(tmp_path), ReadOptions(limits=Limits(max_image_pixels=1999)))
    size = large.stat().st_size
    with pytest.raises(
        DataError, match=rf"1 of 41 images.*\n  {large}: image is {size} bytes, the limit is {size - 1}"
    ):
        load_dataset(str(tmp_path), ReadOptions(limits=Limits(max_image_bytes=size - 1)))


@pytest.mark.parametrize("image_size", [None, (8, 8)])
def test_images_with_damaged_exif_are_named(tmp_path: Path, image_size: tuple[int, int] | None) -> None:
    write_classes(tmp_path, size=(60, 40), suffix=".jpg")
    bad = tmp_path / "dog" / "004.jpg"
    with Image.open(bad) as picture:
        picture.save(bad, exif=b"Exif\0\0MM\0*\xff\xff\xff\x7f\0\2" + bytes(24))
    (warning,) = load_dataset(str(tmp_path), ReadOptions(image_size)).warnings
    assert warning == f"1 image has a damaged EXIF block and is assumed to be upright: {bad}"


def test_damaged_jpegs_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path, size=(60, 40), suffix=".jpg")
    bad = tmp_path / "dog" / "004.jpg"
    content = bytearray(bad.read_bytes())
    content[-400:-200] = bytes(200)
    bad.write_bytes(content)
    with pytest.raises(DataError, match=rf"^1 of 40 images.*\n  {bad}: .*Corrupt JPEG data"):
        load_dataset(str(tmp_path))


def test_the_source_is_recorded(tmp_path: Path) -> None:
    assert load_dataset(str(write_classes(tmp_path))).source == str(tmp_path)


# Colours and sizes


def test_images_that_are_all_grey_make_a_grey_data_set(tmp_path: Path) -> None:
    assert load_dataset(str(write_classes(tmp_path))).contract == PixelContract(4, 5, 1)


def test_one_colour_image_makes_an_rgb_data_set(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_images(tmp_path / "dog", 1, mode="RGB")
    dataset = load_dataset(str(tmp_path))
    assert dataset.contract == PixelContract(4, 5, 3)
    assert dataset.train.images.shape == (32, 4, 5, 3)


def test_images_of_several_sizes_become_squares_of_the_median_shorter_side(tmp_path: Path) -> None:
    write_classes(tmp_path, size=(9, 6), mode="RGB")
    write_images(tmp_path / "cat" / "large", 15, (20, 30), mode="RGB")
    write_images(tmp_path / "dog" / "wide", 8, (40, 5), mode="RGB")
    dataset = load_dataset(str(tmp_path))
    assert dataset.contract == PixelContract(6, 6, 3)
    assert dataset.warnings[-1] == (
        "images differ in size, from 5x40 to 30x20: they become squares of 6x6 pixels. Choose another size with "
        "--image-size HxW"
    )
    again = load_dataset(str(tmp_path), ReadOptions((6, 6)))
    assert again.digest() == dataset.digest()
    assert not any("squares" in warning for warning in again.warnings)


def test_squares_have_at_most_128_pixels_a_side(tmp_path: Path) -> None:
    write_classes(tmp_path, 3, size=(200, 190))
    write_images(tmp_path / "cat", 1, (190, 200))
    assert load_dataset(str(tmp_path)).contract == PixelContract(128, 128, 1)


def test_the_options_of_resizing_are_applied_and_kept(tmp_path: Path) -> None:
    resize = Resize(jpeg_scaling=False)
    dataset = load_dataset(str(write_classes(tmp_path)), ReadOptions((3, 3), resize=resize))
    assert dataset.resize is resize
    assert dataset.contract == PixelContract(3, 3, 1, resize)


def test_image_size_resizes_every_image(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_images(tmp_path / "dog", 2, size=(7, 6))
    assert load_dataset(str(tmp_path), ReadOptions((8, 3))).contract == PixelContract(8, 3, 1)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_a_rotated_photo_has_its_upright_size(tmp_path: Path, orientation: int) -> None:
    write_classes(tmp_path, 4, size=(4, 6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = (6, 4) if orientation >= 5 else (4, 6)
    Image.new("L", stored, 200).save(tmp_path / "cat" / "photo.jpg", exif=exif)
    assert load_dataset(str(tmp_path)).contract == PixelContract(6, 4, 1)


def test_pixels_equal_those_that_serving_decodes(tmp_path: Path) -> None:
    for name in SPLITS:
        write_classes(tmp_path / name, 2, size=(9, 6), mode="RGB")
        write_images(tmp_path / name / "cat", 3, size=(13, 17), suffix=".jpg")
    dataset = load_dataset(str(tmp_path), ReadOptions((5, 4)))
    for name in SPLITS:
        files = sorted((tmp_path / name).glob("*/*"))
        split = getattr(dataset, name)
        assert split.images.dtype == np.uint8
        assert split.images.shape == (7, 5, 4, 3)
        for path, pixels in zip(files, split.images, strict=True):
            served = decode_image(path.read_bytes(), dataset.contract, Limits())
            assert np.array_equal(pixels, served)


def test_training_images_may_exceed_the_size_limit_of_requests(tmp_path: Path) -> None:
    write_classes(tmp_path, 4, mode="RGB")
    large = tmp_path / "cat" / "large.bmp"
    Image.new("RGB", (2000, 1800)).save(large)
    assert large.stat().st_size > Limits().max_image_bytes
    assert load_dataset(str(tmp_path), ReadOptions((4, 4))).contract == PixelContract(4, 4, 3)


def test_progress_counts_every_image_to_the_last(tmp_path: Path) -> None:
    reported: list[tuple[str, int, int]] = []
    load_dataset(str(write_classes(tmp_path)), progress=lambda *event: reported.append(event))
    assert reported == [("decoding", done, 40) for done in range(1, 41)]


# Refusals


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere is not a folder, .* or the name of a data set: .* 'digits', 'mnist', "
    ):
        load_dataset(str(tmp_path / "nowhere"))


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path, 1)
    with pytest.raises(DataError, match=r"000.png is not a folder, a .npz or .tar.gz file"):
        load_dataset(str(path))


@pytest.mark.parametrize("labels", [(), ("cat",)])
def test_fewer_than_two_classes_are_refused(tmp_path: Path, labels: tuple[str, ...]) -> None:
    write_classes(tmp_path, 5, labels)
    with pytest.raises(DataError, match=f"holds {len(labels)} folders of labels, at least 2 are needed"):
        load_dataset(str(tmp_path))


def test_a_class_without_images_is_refused_by_its_folder(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"emu holds no images \(\.jpg, .*: add some or remove the label"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_refused_by_name(tmp_path: Path, split: str) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / split, labels=("cat", "dog", "emu"))
    with pytest.raises(DataError, match=rf"{split} holds labels that train/ does not hold: emu$"):
        load_dataset(str(tmp_path))


def test_a_class_that_the_test_folder_lacks_is_refused_by_its_folder(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", labels=("cat", "dog", "emu"))
    write_classes(tmp_path / "test")
    with pytest.raises(DataError, match="test/emu holds no images"):
        load_dataset(str(tmp_path))


def test_a_class_with_too_few_images_to_carve_is_refused_by_name(tmp_path: Path) -> None:
    write_classes(tmp_path, 20)
    write_images(tmp_path / "emu", 2)
    with pytest.raises(
        DataError,
        match="label 'emu' has 2 training images, at least 3 are needed because test and val images are taken",
    ):
        load_dataset(str(tmp_path))


def test_a_class_with_too_few_images_for_one_missing_split_is_refused_with_that_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 1)
    write_classes(tmp_path / "test", 5)
    with pytest.raises(
        DataError, match="label 'cat' has 1 training images, at least 2 are needed because val images are"
    ):
        load_dataset(str(tmp_path))


def test_a_rare_class_keeps_an_image_in_every_carved_split(tmp_path: Path) -> None:
    write_classes(tmp_path, 100)
    write_images(tmp_path / "emu", 4)
    dataset = load_dataset(str(tmp_path))
    for name in SPLITS:
        assert set(getattr(dataset, name).targets) == {0, 1, 2}


def test_a_rare_class_of_three_images_has_one_in_every_split(tmp_path: Path) -> None:
    write_classes(tmp_path, 20)
    write_images(tmp_path / "emu", 3)
    dataset = load_dataset(str(tmp_path))
    assert [list(getattr(dataset, name).targets).count(2) for name in SPLITS] == [1, 1, 1]


def damage_header(path: Path) -> None:
    path.write_bytes(b"not an image at all")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])  # the header is whole, most of the pixels are not


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [damage_header, cut_short, empty])
def test_a_damaged_file_is_refused_with_its_path_and_the_option_to_skip_it(tmp_path: Path, spoil) -> None:
    write_classes(tmp_path)
    bad = tmp_path / "dog" / "007.png"
    spoil(bad)
    with pytest.raises(DataError, match=r"^1 of 40 images cannot be read: .* --skip-unreadable") as refusal:
        load_dataset(str(tmp_path))
    _, second = str(refusal.value).splitlines()
    assert second.startswith(f"  {bad}: ")
    assert len(second) > len(f"  {bad}: ") + 5


def test_every_kind_of_damaged_file_is_listed(tmp_path: Path) -> None:
    write_classes(tmp_path)
    bad = [tmp_path / "cat" / "003.png", tmp_path / "cat" / "019.png", tmp_path / "dog" / "000.png"]
    for path, spoil in zip(bad, (cut_short, damage_header, empty), strict=True):
        spoil(path)
    with pytest.raises(DataError, match=r"^3 of 40 images") as refusal:
        load_dataset(str(tmp_path))
    assert [line.split(": ")[0].strip() for line in str(refusal.value).splitlines()[1:]] == [str(path) for path in bad]


@pytest.mark.parametrize(("count", "last"), [(10, "009.png"), (11, "and 1 more"), (15, "and 5 more")])
def test_ten_damaged_files_are_listed_and_the_rest_counted(tmp_path: Path, count: int, last: str) -> None:
    write_classes(tmp_path)
    for index in range(count):
        cut_short(tmp_path / "cat" / f"{index:03d}.png")
    with pytest.raises(DataError, match=f"^{count} of 40 images") as refusal:
        load_dataset(str(tmp_path))
    lines = str(refusal.value).splitlines()
    assert len(lines) == 1 + min(count, 10) + (count > 10)
    assert last in lines[-1]


def test_damaged_files_are_left_out_with_skip_unreadable(tmp_path: Path) -> None:
    whole = load_dataset(str(write_classes(tmp_path)))
    bad = [tmp_path / "cat" / "003.png", tmp_path / "dog" / "000.png"]
    lost = Counter(read_pixels(path).tobytes() for path in bad)
    cut_short(bad[0])
    damage_header(bad[1])
    dataset = load_dataset(str(tmp_path), ReadOptions(skip_unreadable=True))
    for name in SPLITS:  # carved by name before reading: the other images stay in their splits
        assert images_of(getattr(dataset, name)) == images_of(getattr(whole, name)) - lost
        assert len(getattr(dataset, name).images) == len(getattr(dataset, name))
    assert sum(sizes(dataset).values()) == 38
    (warning,) = dataset.warnings
    assert warning.startswith(f"2 unreadable images are left out: {bad[0]}: ")
    assert str(bad[1]) in warning
    assert not whole.warnings


def test_images_keep_their_labels_if_others_are_left_out(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for index in (0, 5, 6, 13):
        damage_header(tmp_path / "cat" / f"{index:03d}.png")
    dataset = load_dataset(str(tmp_path), ReadOptions(skip_unreadable=True))
    label_of = {
        read_pixels(path).tobytes(): path.parent.name for path in tmp_path.glob("*/*") if path.stat().st_size > 20
    }
    for name in SPLITS:
        split = getattr(dataset, name)
        assert [label_of[image.tobytes()] for image in split.images] == [dataset.labels[t] for t in split.targets]


def test_three_files_left_out_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for index in range(5):
        empty(tmp_path / "cat" / f"{index:03d}.png")
    (warning,) = load_dataset(str(tmp_path), ReadOptions(skip_unreadable=True)).warnings
    assert warning.startswith("5 unreadable images")
    assert "002.png" in warning
    assert "003.png" not in warning
    assert warning.endswith("and 2 more")


def test_a_class_without_readable_images_is_refused_by_name(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for path in (tmp_path / "dog").iterdir():
        damage_header(path)
    with pytest.raises(DataError, match=r"label 'dog' has no train images: .*\(20 unreadable images are left out"):
        load_dataset(str(tmp_path), ReadOptions(skip_unreadable=True))


def test_a_folder_without_readable_images_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for path in tmp_path.glob("*/*"):
        empty(path)
    with pytest.raises(DataError, match=r"^40 of 40 images cannot be read"):
        load_dataset(str(tmp_path), ReadOptions(skip_unreadable=True))


def test_a_folder_named_like_an_image_is_read_as_a_folder(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_images(tmp_path / "cat" / "0.png", 2)
    dataset = load_dataset(str(tmp_path))
    assert sum(sizes(dataset).values()) == 42
    assert [warning.split()[:3] for warning in dataset.warnings] == [["2", "images", "lie"]]


def test_an_image_without_read_permission_is_named_with_the_reason(readable_folder: Path) -> None:
    write_classes(readable_folder)
    (readable_folder / "cat" / "003.png").chmod(0)
    with (
        as_nobody(),
        pytest.raises(DataError, match=r"^1 of 40 images cannot be read.*\n  .*003\.png: .*Permission denied"),
    ):
        load_dataset(str(readable_folder))


@pytest.mark.parametrize("forbidden", ["cat", "cat/deep", ""])
def test_a_folder_without_read_permission_is_refused_with_its_path(readable_folder: Path, forbidden: str) -> None:
    write_classes(readable_folder)
    write_images(readable_folder / "cat" / "deep", 1)
    (readable_folder / forbidden).chmod(0)
    with as_nobody(), pytest.raises(UsageError, match=rf"{forbidden} cannot be read: Permission denied"):
        load_dataset(str(readable_folder))
    (readable_folder / forbidden).chmod(0o755)


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        (
            "sys/fs/cgroup",
            {"memory.max": "1000000", "memory.current": "700000", "memory.stat": "anon 1\ninactive_file 200000"},
        ),
        (
            "sys/fs/cgroup/memory",
            {
                "memory.limit_in_bytes": "1000000",
                "memory.usage_in_bytes": "700000",
                "memory.stat": "cache 1\ntotal_inactive_file 200000",
            },
        ),
    ],
    ids=["v2", "v1"],
)
def test_what_is_left_of_the_limit_of_a_container_bounds_the_available_memory(
    tmp_path: Path, folder: str, files: dict[str, str]
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / folder / name).write_text(content + "\n")
    assert available_memory_bytes(tmp_path) == 500_000


@pytest.mark.parametrize("content", ["max\n", str(2**62), None])
def test_without_a_limit_the_available_memory_is_the_machines(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    if content is not None:
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(content)
    assert 2**20 < available_memory_bytes(tmp_path) < psutil.virtual_memory().total


def test_a_data_error_has_the_exit_code_of_wrong_usage() -> None:
    assert DataError.exit_code == 2


# The digest


def copy(dataset: Dataset) -> Dataset:
    train, val, test = (
        Split(split.images.copy(), split.targets.copy()) for split in (dataset.train, dataset.val, dataset.test)
    )
    return dataclasses.replace(dataset, train=train, val=val, test=test)


def test_equal_data_have_equal_digests(digits: Dataset) -> None:
    assert copy(digits).digest() == digits.digest()
    assert digits.digest().startswith("sha256:")
    assert len(digits.digest()) == 7 + 64


def test_the_digest_does_not_depend_on_the_source(digits: Dataset) -> None:
    assert dataclasses.replace(digits, source="elsewhere").digest() == digits.digest()


def test_the_digest_does_not_depend_on_the_memory_layout(digits: Dataset) -> None:
    strided = Split(np.asfortranarray(digits.val.images), digits.val.targets)
    assert dataclasses.replace(digits, val=strided).digest() == digits.digest()


@pytest.mark.parametrize("name", SPLITS)
def test_the_digest_changes_with_one_pixel_of_any_split(digits: Dataset, name: str) -> None:
    changed = copy(digits)
    getattr(changed, name).images[-1, 3, 3, 0] ^= 1
    assert changed.digest() != digits.digest()


@pytest.mark.parametrize("name", SPLITS)
def test_the_digest_changes_with_one_target_of_any_split(digits: Dataset, name: str) -> None:
    changed = copy(digits)
    getattr(changed, name).targets[-1] += 1
    assert changed.digest() != digits.digest()


def test_the_digest_changes_with_a_label(digits: Dataset) -> None:
    assert dataclasses.replace(digits, labels=("zero", *digits.labels[1:])).digest() != digits.digest()


def test_the_digest_changes_with_the_shape_of_equal_bytes(digits: Dataset) -> None:
    reshaped = Split(digits.val.images.reshape(-1, 4, 16, 1), digits.val.targets)
    assert dataclasses.replace(digits, val=reshaped).digest() != digits.digest()


def test_a_dangling_link_is_an_unreadable_image(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "cat" / "zzz.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"1 of 41 images cannot be read.*\n.*zzz\.png"):
        load_dataset(str(tmp_path))
    dataset = load_dataset(str(tmp_path), ReadOptions(skip_unreadable=True))
    assert sum(map(len, (dataset.train, dataset.val, dataset.test))) == 40
