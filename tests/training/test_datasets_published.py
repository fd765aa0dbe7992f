"""Data sets in their published formats: IDX, CIFAR-10's archive and .npz, and refusals with their messages."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalmode.errors import DataError
from evalmode.images.pixels import PixelContract
from training.datasets import DATASETS, Dataset, ReadOptions, Split, cifar, load_dataset
from training.datasets.catalog import NamedDataset
from training.datasets.downloads import PublishedFile
from training.datasets.idx import read_idx

SPLITS = ("train", "val", "test")
CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def make_images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, count]).integers(0, 256, (count, *shape), np.uint8)


def pack_idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(folder: Path, gzipped: bool = False, classes: int = 3) -> dict[str, np.ndarray]:
    """60 training and 12 test images of 5x4."""
    arrays = dict(
        zip(
            IDX_FILES,
            (make_images(60, 5, 4), np.arange(60) % classes, make_images(12, 5, 4, seed=1), np.arange(12) % classes),
            strict=True,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in arrays.items():
        content = pack_idx(values.astype(np.uint8))
        (folder / f"{name}.gz" if gzipped else folder / name).write_bytes(
            gzip.compress(content) if gzipped else content
        )
    return arrays


def pairs(*splits: Split) -> Counter[tuple[bytes, int]]:
    return Counter(
        (image.tobytes(), int(target))
        for split in splits
        for image, target in zip(split.images, split.targets, strict=True)
    )


def pairs_of(images: np.ndarray, targets: np.ndarray) -> Counter[tuple[bytes, int]]:
    return pairs(Split(images, targets))


def sizes(dataset: Dataset) -> tuple[int, ...]:
    return tuple(len(getattr(dataset, name)) for name in SPLITS)


# IDX


@pytest.mark.parametrize("gzipped", [False, True])
def test_idx_files_are_read_and_val_is_carved_from_train(tmp_path: Path, gzipped: bool) -> None:
    arrays = write_idx(tmp_path, gzipped)
    dataset = load_dataset(str(tmp_path))
    assert sizes(dataset) == (54, 6, 12)
    assert dataset.contract == PixelContract(5, 4, 1)
    assert dataset.labels == ("0", "1", "2")
    assert dataset.source == str(tmp_path)
    assert dataset.warnings == ()
    assert np.array_equal(dataset.test.images[..., 0], arrays[IDX_FILES[2]])
    assert dataset.test.targets.tolist() == arrays[IDX_FILES[3]].tolist()
    assert dataset.test.targets.dtype == np.int64
    assert pairs(dataset.train, dataset.val) == pairs_of(arrays[IDX_FILES[0]], arrays[IDX_FILES[1]])
    assert np.bincount(dataset.val.targets).tolist() == [2, 2, 2]


def test_carving_published_images_follows_the_seed_and_keeps_their_order(tmp_path: Path) -> None:
    arrays = write_idx(tmp_path)
    one, again, other = (load_dataset(str(tmp_path), seed=seed) for seed in (3, 3, 4))
    assert one.digest() == again.digest()
    assert pairs(one.val) != pairs(other.val)
    place = {image.tobytes(): index for index, image in enumerate(arrays[IDX_FILES[0]])}
    for split in (one.train, one.val):
        places = [place[image.tobytes()] for image in split.images]
        assert places == sorted(places)


def test_labels_beside_idx_files_are_their_names(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "labels.txt").write_text("Ameise\nBär\n\n Kuh \n")
    assert load_dataset(str(tmp_path)).labels == ("Ameise", "Bär", "Kuh")
    (tmp_path / "labels.txt").write_text("Ameise\r\nBär\r\nKuh", "utf-8-sig")
    assert load_dataset(str(tmp_path)).labels == ("Ameise", "Bär", "Kuh")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (b"ant\nbee\n", "targets up to 2 need 3 distinct labels, and they are ant, bee"),
        (b"ant\nbee\nbee\n", r"labels\.txt names 'bee' on lines 2 and 3: each label once"),
        (b"ant\nb\xff\ncow", r"labels\.txt, line 2: b'b\\xff' is not utf-8: save the file as UTF-8"),
        (b"", r"labels\.txt names 0 labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: bytes, words: str) -> None:
    write_idx(tmp_path)
    (tmp_path / "labels.txt").write_bytes(labels)
    with pytest.raises(DataError, match=words):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("name", IDX_FILES[1:])
def test_a_missing_idx_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    write_idx(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing, and so is {name}\.gz: all four"):
        load_dataset(str(tmp_path))


IMAGES = make_images(60, 5, 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not an IDX file: it begins with nothing, not 00000803"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "begins with 89504e47, not 00000803"),
        (pack_idx(np.arange(60, dtype=np.uint8)), "begins with 00000801, not 00000803"),
        (bytes([0, 0, 13, 3]) + pack_idx(IMAGES)[4:], "begins with 00000d03"),
        (pack_idx(IMAGES)[:10], "is not an IDX file"),
        (pack_idx(IMAGES)[:-1], r"holds 1,199 values, its header says 60 x 5 x 4"),
        (pack_idx(IMAGES) + b"x", r"holds more values, its header says 60 x 5 x 4"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**16, 2**16), r"4294967295 x 65536 x 65536 pixels need"),
        (pack_idx(IMAGES[:59]), r"train has images \(59, 5, 4, 1\) and 60 targets"),
        (pack_idx(IMAGES[:0]), r"train has images \(0, 5, 4, 1\)"),
        (pack_idx(IMAGES[:, :0]), r"train has images \(60, 0, 4, 1\)"),
        (pack_idx(IMAGES[:, :, :3]), r"test images are \(5, 4, 1\), train images \(5, 3, 1\)"),
    ],
)
@pytest.mark.parametrize("gzipped", [False, True])
def test_invalid_idx_images_are_refused(tmp_path: Path, content: bytes, words: str, gzipped: bool) -> None:
    write_idx(tmp_path)
    (tmp_path / IDX_FILES[0]).unlink()
    path = tmp_path / (IDX_FILES[0] + ".gz" * gzipped)
    path.write_bytes(gzip.compress(content) if gzipped else content)
    with pytest.raises(DataError, match=words):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("spoil", [lambda c: c[:-20], lambda c: b"no gzip" + c, lambda c: c[:40] + bytes(40) + c[80:]])
def test_a_damaged_gz_is_refused_by_its_path(tmp_path: Path, spoil) -> None:
    write_idx(tmp_path, gzipped=True)
    path = tmp_path / f"{IDX_FILES[0]}.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is damaged: "):
        load_dataset(str(tmp_path))


def test_a_class_without_enough_training_images_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    targets = np.array([0, 1] * 30, np.uint8)
    (tmp_path / IDX_FILES[1]).write_bytes(pack_idx(targets))
    with pytest.raises(
        DataError, match="label '2' has 0 training images, at least 2 are needed because val images are"
    ):
        load_dataset(str(tmp_path))


def test_one_class_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, classes=1)
    with pytest.raises(DataError, match="there is only one label, '0': at least 2"):
        load_dataset(str(tmp_path))


def test_published_images_are_not_resized(tmp_path: Path) -> None:
    write_idx(tmp_path)
    assert load_dataset(str(tmp_path), ReadOptions((5, 4))).contract == PixelContract(5, 4, 1)
    with pytest.raises(DataError, match="are 5x4 and are not resized: omit --image-size"):
        load_dataset(str(tmp_path), ReadOptions((4, 5)))


def test_published_images_are_checked_for_copies(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / IDX_FILES[2]).write_bytes(pack_idx(IMAGES[:12]))
    dataset = load_dataset(str(tmp_path))
    assert sum(sizes(dataset)) == 60
    assert sum(int(warning.split()[0]) for warning in dataset.warnings if "copies of test" in warning) == 12


# Names


def publish(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, suffix: str = ".gz") -> None:
    """Register the files of a folder as the published files; uncompressed files stand for compressed ones."""
    contents = {f"{path.name}{suffix}": path.read_bytes() for path in folder.iterdir()}
    files = tuple(
        PublishedFile(f"https://example.org/{file}", len(content), hashlib.sha256(content).hexdigest())
        for file, content in contents.items()
    )
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], files=files))


def test_a_name_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "mnist")
    publish(monkeypatch, "mnist", tmp_path / "mnist")
    dataset = load_dataset("mnist", cache=tmp_path)
    assert dataset.source == "mnist"
    assert dataset.labels == ("0", "1", "2")
    assert dataset.digest() == load_dataset(str(tmp_path / "mnist")).digest()


def test_cached_files_must_be_the_published_files(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist")
    with pytest.raises(DataError, match=r"mnist/train-images-idx3-ubyte is not the published file"):
        load_dataset("mnist", cache=tmp_path)


def test_another_named_data_set_needs_only_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "pets")
    record = NamedDataset(lambda folder, progress: read_idx(folder, ("ant", "bee", "cow")))
    monkeypatch.setitem(DATASETS, "pets", record)
    publish(monkeypatch, "pets", tmp_path / "pets")
    assert load_dataset("pets", cache=tmp_path).labels == ("ant", "bee", "cow")


def test_fashion_mnist_has_its_own_label_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "fashion-mnist", classes=10)
    publish(monkeypatch, "fashion-mnist", tmp_path / "fashion-mnist")
    labels = load_dataset("fashion-mnist", cache=tmp_path).labels
    assert len(labels) == 10
    assert (labels[0], labels[9]) == ("T-shirt/top", "Ankle boot")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_a_name_without_a_cache_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is kept in a cache"):
        load_dataset(name)


def test_a_folder_named_like_a_data_set_takes_precedence_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path / "cifar10")
    monkeypatch.chdir(tmp_path)
    assert load_dataset("cifar10").contract == PixelContract(5, 4, 1)


@pytest.mark.skipif("EVALMODE_TEST_FASHION_MNIST" not in os.environ, reason="names the folder of Fashion-MNIST's files")
def test_debians_fashion_mnist_is_the_published_data_set() -> None:
    folder = Path(os.environ["EVALMODE_TEST_FASHION_MNIST"])
    dataset = load_dataset("fashion-mnist", cache=folder.parent)
    assert sizes(dataset) == (54_000, 6_000, 10_000)
    assert dataset.contract == PixelContract(28, 28, 1)
    assert np.bincount(dataset.val.targets).tolist() == [600] * 10
    assert dataset.labels[dataset.test.targets[0]] == "Ankle boot"


# CIFAR-10


@pytest.fixture
def ten(monkeypatch: pytest.MonkeyPatch) -> int:
    """Batches of ten images instead of 10,000."""
    monkeypatch.setattr(cifar, "BATCH_IMAGES", 10)
    return 10


def make_members() -> dict[str, bytes]:
    """Six batches of ten images, a class each, in the order of the published archive, not of their numbers."""
    order = (
        "data_batch_1",
        "batches.meta",
        "data_batch_3",
        "data_batch_4",
        "test_batch",
        "data_batch_5",
        "data_batch_2",
    )
    members = {}
    for index, name in enumerate(order):
        if name == "batches.meta":
            members["batches.meta.txt"] = "\n".join([*CIFAR_NAMES, "", ""]).encode()
        else:
            images = make_images(10, 3072, seed=index)
            targets = np.arange(10, dtype=np.uint8)[:, np.newaxis]
            members[f"{name}.bin"] = np.hstack([targets, images]).tobytes()
    return members | {"readme.html": b"<html>"}


def write_cifar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_cifars_archive_is_read_in_the_order_of_its_batches(tmp_path: Path, ten: int) -> None:
    members = make_members()
    dataset = load_dataset(str(write_cifar(tmp_path / "cifar-10-binary.tar.gz", members)))
    assert sizes(dataset) == (40, 10, 10)
    assert dataset.labels == CIFAR_NAMES
    assert dataset.contract == PixelContract(32, 32, 3)
    planes = np.frombuffer(members["test_batch.bin"], np.uint8).reshape(10, 3073)[:, 1:].reshape(10, 3, 1024)
    for colour in range(3):
        assert np.array_equal(dataset.test.images[..., colour].reshape(10, 1024), planes[:, colour])
    assert dataset.test.targets.tolist() == list(range(10))
    batches = [np.frombuffer(members[f"data_batch_{n}.bin"], np.uint8).reshape(10, 3073) for n in range(1, 6)]
    place = {row[1:].tobytes(): index for index, row in enumerate(np.concatenate(batches))}
    for split in (dataset.train, dataset.val):
        places = [place[image.transpose(2, 0, 1).tobytes()] for image in split.images]
        assert places == sorted(places)
        assert [number % 10 for number in places] == split.targets.tolist()


def test_cifar10_is_found_by_its_name(tmp_path: Path, ten: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar10").mkdir()
    path = write_cifar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", make_members())
    publish(monkeypatch, "cifar10", path.parent, suffix="")
    reported: list[tuple[str, int, int]] = []
    dataset = load_dataset("cifar10", cache=tmp_path, progress=lambda *event: reported.append(event))
    assert dataset.source == "cifar10"
    assert reported == [("decoding", done, 60) for done in range(10, 70, 10)]


def test_reading_cifars_archive_writes_nothing(tmp_path: Path, ten: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_cifar(tmp_path / "pictures.tgz", make_members())
    load_dataset(str(path))
    assert list(tmp_path.iterdir()) == [path]


def test_the_published_archive_has_ten_thousand_images_per_batch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_batch_1\.bin has 30,730 bytes, 30,730,000 are expected"):
        load_dataset(str(write_cifar(tmp_path / "c.tar.gz", make_members())))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_batch_2.bin": bytes(30_729)}, r"data_batch_2\.bin has 30,729 bytes, 30,730 are expected"),
        ({"test_batch.bin": bytes(40_000)}, r"test_batch\.bin has 40,000 bytes"),
        ({"data_batch_3.bin": None}, r"lacks data_batch_3\.bin"),
        ({"batches.meta.txt": None, "test_batch.bin": None}, r"lacks batches\.meta\.txt, test_batch\.bin"),
        ({"batches.meta.txt": b"cat\ndog\n"}, "targets up to 9 need 10 distinct labels, and they are cat, dog"),
        ({"batches.meta.txt": b"cat\n\xe9\n"}, r"c\.tar\.gz: batches\.meta\.txt, line 2: b'\\xe9' is not utf-8"),
        ({"batches.meta.txt": b"a\nb\na\n"}, r"c\.tar\.gz: batches\.meta\.txt names 'a' on lines 1 and 3"),
        ({"batches.meta.txt": b"a\n" * 40_000}, r"batches\.meta\.txt has 80,000 bytes, at most 65,536 are expected"),
        ({"test_batch.bin": bytes([10]) * 30_730}, "targets up to 10 need 11 distinct labels, and they are airplane"),
    ],
)
def test_an_archive_that_is_not_cifars_is_refused(tmp_path: Path, ten: int, change: dict, words: str) -> None:
    members = {name: content for name, content in (make_members() | change).items() if content is not None}
    with pytest.raises(DataError, match=words):
        load_dataset(str(write_cifar(tmp_path / "c.tar.gz", members)))


def test_a_link_in_the_place_of_a_batch_is_not_followed(tmp_path: Path, ten: int) -> None:
    members = make_members()
    (tmp_path / "secret").write_bytes(members.pop("data_batch_2.bin"))
    path = write_cifar(tmp_path / "c.tar", members)
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_2.bin")
        link.type, link.linkname, link.size = tarfile.SYMTYPE, str(tmp_path / "secret"), 30_730
        archive.addfile(link)
        with tarfile.open(path) as whole:
            for member in whole:
                archive.addfile(member, whole.extractfile(member))
    with pytest.raises(DataError, match=r"not a CIFAR-10 binary archive, or it is damaged: cannot extract \(sym\)link"):
        load_dataset(str(tmp_path / "c.tar.gz"))


@pytest.mark.parametrize(
    "spoil",
    [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"no gzip at all", lambda c: gzip.compress(b"x" * 5000)],
)
def test_a_damaged_archive_is_refused_by_its_path(tmp_path: Path, ten: int, spoil) -> None:
    path = write_cifar(tmp_path / "c.tar.gz", make_members())
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"c\.tar\.gz is not a (complete )?CIFAR-10 binary archive"):
        load_dataset(str(path))


def test_an_archive_that_memory_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.datasets.memory.available_memory_bytes", lambda: 1000)
    with pytest.raises(DataError, match="60000 x 32 x 32 x 3 pixels need 184,320,000 bytes"):
        load_dataset(str(write_cifar(tmp_path / "c.tar.gz", make_members())))


# .npz


def make_arrays(**changes: object) -> dict[str, np.ndarray]:
    arrays = {
        "x_train": make_images(40, 6, 5, 3),
        "y_train": np.arange(40) % 4,
        "x_test": make_images(8, 6, 5, 3, seed=1),
        "y_test": np.arange(8) % 4,
    }
    return {name: values for name, values in (arrays | changes).items() if values is not None}  # type: ignore[misc]


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def test_an_npz_as_keras_publishes_is_read(tmp_path: Path) -> None:
    arrays = make_arrays()
    dataset = load_dataset(str(write_npz(tmp_path / "a.npz", arrays)))
    assert sizes(dataset) == (36, 4, 8)
    assert dataset.contract == PixelContract(6, 5, 3)
    assert dataset.labels == ("0", "1", "2", "3")
    assert np.array_equal(dataset.test.images, arrays["x_test"])
    assert pairs(dataset.train, dataset.val) == pairs_of(arrays["x_train"], arrays["y_train"])


def test_an_npz_as_medmnist_publishes_is_read_with_its_own_val(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for index, (name, count) in enumerate((("train", 40), ("val", 8), ("test", 12))):
        arrays |= {f"{name}_images": make_images(count, 6, 5, seed=index)}
        arrays |= {f"{name}_labels": (np.arange(count) % 4).astype(np.uint8)[:, np.newaxis]}
    dataset = load_dataset(str(write_npz(tmp_path / "a.npz", arrays)))
    assert dataset.contract == PixelContract(6, 5, 1)
    for name in SPLITS:
        split = getattr(dataset, name)
        assert np.array_equal(split.images[..., 0], arrays[f"{name}_images"])
        assert np.array_equal(split.targets, arrays[f"{name}_labels"][:, 0])
        assert split.targets.dtype == np.int64


def test_a_test_split_that_an_npz_lacks_is_carved(tmp_path: Path) -> None:
    arrays = make_arrays(x_test=None, y_test=None)
    dataset = load_dataset(str(write_npz(tmp_path / "a.npz", arrays)))
    assert sizes(dataset) == (32, 4, 4)
    assert pairs(dataset.train, dataset.val, dataset.test) == pairs_of(arrays["x_train"], arrays["y_train"])


@pytest.mark.parametrize("kind", ["U", "S"])
def test_an_npz_may_name_its_labels(tmp_path: Path, kind: str) -> None:
    path = write_npz(tmp_path / "a.npz", make_arrays(labels=np.array(["ant", "bee", "cow", "dog"], kind)))
    assert load_dataset(str(path)).labels == ("ant", "bee", "cow", "dog")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_train": None}, "lacks x_train; it holds y_train, x_test, y_test, and"),
        ({"y_train": None}, "lacks y_train"),
        ({"y_test": None}, "lacks y_test"),
        ({"x_train": make_images(40, 6, 5, 3) / 255}, r"x_train is float64 \(40, 6, 5, 3\): uint8 "),
        ({"x_train": make_images(40, 90)}, r"x_train is uint8 \(40, 90\): uint8 \(N, H, W\) or"),
        ({"x_train": make_images(40, 6, 5, 4)}, r"x_train is uint8 \(40, 6, 5, 4\)"),
        ({"x_train": make_images(40, 2, 6, 5, 3)}, r"x_train is uint8 \(40, 2, 6, 5, 3\)"),
        ({"x_train": make_images(39, 6, 5, 3)}, r"train has images \(39, 6, 5, 3\) and 40 targets"),
        ({"x_test": make_images(8, 6, 6, 3)}, r"test images are \(6, 6, 3\), train images \(6, 5, 3\)"),
        ({"x_test": make_images(8, 6, 5)}, r"test images are \(6, 5, 1\), train images \(6, 5, 3\)"),
        ({"x_test": make_images(0, 6, 5, 3), "y_test": np.arange(0)}, r"test has images \(0, 6, 5, 3\) and 0 targets"),
        ({"y_train": np.arange(40) % 4 / 1}, r"y_train is float64 \(40,\): one integer"),
        ({"y_train": np.eye(4, dtype=np.uint8)[np.arange(40) % 4]}, r"y_train is uint8 \(40, 4\): one integer"),
        ({"y_train": np.arange(40) % 4 - 1}, r"y_train holds -1\.\.2: targets are counted from 0"),
        ({"y_train": np.full(40, 2**63, np.uint64)}, r"y_train holds 9223372036854775808\.\."),
        ({"y_train": np.full(40, 40)}, "targets up to 40 need 41 distinct labels, and there are 40 training images"),
        ({"labels": np.array(["a", "b", "c"])}, "targets up to 3 need 4 distinct labels, and they are a, b, c"),
        ({"labels": np.array(["a", "b", "c", "d", "e"])}, "label 'e' has 0 training images"),
        ({"labels": np.array(["a", "b", "c", "b"])}, r"a\.npz: the label 'b' occurs more than once"),
        ({"x_train": np.array([b"x", {}], object)}, r"x_train is object \(2,\): uint8 "),
        ({"y_train": np.array([b"x", {}], object)}, "cannot be read as .npz: Object arrays cannot be loaded"),
        ({"y_test": np.array([0, 1, 2, 0, 1, 2, 0, 1])}, "label '3' has no test images"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset(str(write_npz(tmp_path / "a.npz", make_arrays(**change))))


@pytest.mark.parametrize(
    "spoil", [lambda c: c[:-30], lambda c: b"", lambda c: b"PK", lambda c: c[:200] + bytes(99) + c[299:]]
)
def test_a_damaged_npz_is_refused_by_its_path(tmp_path: Path, spoil) -> None:
    path = write_npz(tmp_path / "a.npz", make_arrays())
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.npz"):
        load_dataset(str(path))


def test_an_npz_whose_header_exceeds_any_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x_train.npy", "w") as file:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 10**4)}
        np.lib.format.write_array_header_1_0(file, shape)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y_train.npy", b"")
    with pytest.raises(DataError, match=r"a\.npz: x_train has 128 bytes, its header says 1000000 x 1000000 x 10000$"):
        load_dataset(str(path))


@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "labels"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda npy: npy.replace(b"}", b" "),  # tokenize.TokenError
        lambda npy: npy[:40],
        lambda npy: npy[:8] + b"\xff\xff" + npy[10:],
        lambda npy: make_header(2**70),  # OverflowError
        lambda npy: make_header(-1),
        lambda npy: make_header(10**4301),
        lambda npy: npy[:10] + b"\n" * (len(npy) - 10),
        lambda npy: npy.replace(b"'descr'", b"'descs'"),
        lambda npy: b"",
    ],
)
def test_every_error_of_numpy_is_reported_in_one_line(tmp_path: Path, name: str, spoil) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in make_arrays(labels=np.array(["ant", "bee", "cow", "dog"])).items():
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{key}.npy", spoil(file.getvalue()) if key == name else file.getvalue())
    with pytest.raises(DataError, match=r"a\.npz") as refused:
        load_dataset(str(path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(path))


def make_header(length: int) -> bytes:
    """The .npy header of an array of ``length`` bytes, without its data."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({hex(length)},), }}\n".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


def test_images_of_several_labels_are_named_by_their_rows_in_the_archive(tmp_path: Path) -> None:
    arrays = make_arrays(x_test=None, y_test=None)
    images, targets = arrays["x_train"], arrays["y_train"]
    for first, second in ((2, 31), (7, 12), (20, 33)):
        images[second] = images[first]
        assert targets[first] != targets[second]
    dataset = load_dataset(str(write_npz(tmp_path / "a.npz", arrays)))
    named = re.findall(r"train image (\d+) \((\d)\) and train image (\d+) \((\d)\)", dataset.warnings[0])
    pairs = {tuple(sorted(((int(a), b), (int(c), d)))) for a, b, c, d in named}
    assert pairs == {((2, "2"), (31, "3")), ((7, "3"), (12, "0")), ((20, "0"), (33, "1"))}


def test_an_archive_of_other_files_is_not_an_npz(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train", b"images")
        archive.writestr("y_train", b"targets")
    with pytest.raises(DataError, match=r"a\.npz cannot be read as \.npz"):
        load_dataset(str(tmp_path / "a.npz"))


def test_a_single_array_is_not_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz cannot be read as \.npz"):
        load_dataset(str(tmp_path / "a.npz"))


def test_images_of_an_npz_that_memory_cannot_hold_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path / "a.npz", {**make_arrays(), "x_test": make_images(8, 5, 6, 3).swapaxes(1, 2)})
    in_memory = load_dataset(str(path))
    monkeypatch.setattr("training.datasets.storage.available_memory_bytes", lambda: 719)
    monkeypatch.setattr("training.datasets.storage.BLOCK_BYTES", 7 * 6 * 5 * 3)
    notices: list[str] = []
    on_disk = load_dataset(str(path), cache=tmp_path, notify=notices.append)
    assert [notice.split(" pixels")[0] for notice in notices] == ["40 x 6 x 5 x 3", "8 x 6 x 5 x 3"]
    assert on_disk.digest() == in_memory.digest()


def test_targets_of_an_npz_that_memory_cannot_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.datasets.memory.available_memory_bytes", lambda: 300)
    with pytest.raises(DataError, match="448 pixels need 448 bytes of memory and 300 are available"):
        load_dataset(str(write_npz(tmp_path / "a.npz", make_arrays())))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_whose_checksum_is_wrong_is_refused(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "a.npz"
    save(
        path, x_train=np.zeros((200, 6, 5, 3), np.uint8), y_train=np.arange(200) % 2
    )  # more than zipfile reads at once
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"x_train.npy") - 46  # in the directory at the end
    assert content[entry : entry + 4] == b"PK\1\2"
    content[entry + 16] ^= 1  # the checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz cannot be read as \.npz: Bad CRC-32 for file 'x_train.npy'"):
        load_dataset(str(path))


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(DataError, match=r"cannot be read: .*Is a directory"):
        load_dataset(str(tmp_path))
