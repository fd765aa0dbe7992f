"""Pixels in a memory-mapped file: the same data set, bounded memory, and nothing left on the disk."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from evalmode.errors import DataError
from tests.conftest import as_nobody
from training.datasets import Dataset, ReadOptions, load_dataset, read_blocks, release_pages, storage
from training.datasets.dataset import Split
from training.datasets.storage import Storage

SPLITS = ("train", "val", "test")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty images of 8x6 pixels in two classes, one of them damaged, one a copy."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(20):
            picture = Image.fromarray(rng.integers(0, 256, (8, 6, 3), np.uint8))
            picture.save(tmp_path / "photos" / label / f"{index:02}.png")
            if index == 7:
                picture.save(tmp_path / "photos" / label / "copy.png")
    (tmp_path / "photos" / "dog" / "03.png").write_bytes(b"damaged")
    return tmp_path / "photos"


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Map pixels of any size, and read three images at once."""
    monkeypatch.setattr(storage, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(storage, "BLOCK_BYTES", 3 * 8 * 6 * 3)


def is_mapped(images: np.ndarray) -> bool:
    owner: object = images
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner, mmap.mmap)


def load(photos: Path, cache: Path | None = None, notices: list[str] | None = None) -> Dataset:
    options = ReadOptions(skip_unreadable=True)
    return load_dataset(str(photos), options, cache=cache, notify=([] if notices is None else notices).append)


def test_a_data_set_in_a_file_equals_one_in_memory(
    photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    in_memory = load(photos)
    request.getfixturevalue("mapped")
    notices: list[str] = []
    on_disk = load(photos, tmp_path / "cache" / "new", notices)
    for name in SPLITS:
        kept, wanted = getattr(on_disk, name), getattr(in_memory, name)
        assert (is_mapped(kept.images), is_mapped(wanted.images)) == (True, False)
        assert np.array_equal(kept.images, wanted.images)
        assert kept.paths == wanted.paths
    assert on_disk.digest() == in_memory.digest()
    assert on_disk.warnings == in_memory.warnings
    (notice,) = notices
    assert notice.startswith(
        f"42 x 8 x 6 x 3 pixels need 6,048 bytes: they are kept in a file in {tmp_path / 'cache/new'} until the "
        "process ends; "
    )
    assert list((tmp_path / "cache" / "new").iterdir()) == []  # the file has no name


@pytest.mark.usefixtures("mapped")
def test_every_pass_releases_the_pages_of_three_images_at_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: Mock(wraps=release_pages) for name in ("folders", "dataset", "storage")}
    for name, released in modules.items():
        monkeypatch.setattr(f"training.datasets.{name}.release_pages", released)
    dataset = load(photos)
    assert modules["folders"].call_count == 42 / 3 + 1  # decoding
    assert modules["dataset"].call_count >= 41 / 3  # leaving out the damaged one, and copies
    hashing = modules["storage"].call_count
    assert hashing >= 41 / 3
    dataset.digest()
    assert modules["storage"].call_count >= hashing + 40 / 3


def test_pixels_up_to_the_limit_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "IN_MEMORY_BYTES", 24)
    assert not is_mapped(Storage().allocate((2, 3, 4)))
    assert is_mapped(Storage().allocate((1, 5, 5)))


def test_pixels_larger_than_the_available_memory_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "available_memory_bytes", lambda: 23)
    assert is_mapped(Storage().allocate((2, 3, 4)))


@pytest.mark.usefixtures("mapped")
def test_pixels_larger_than_the_disk_are_refused_before_decoding(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=6_047))
    decoded: list[int] = []
    with pytest.raises(DataError, match=rf"42 x 8 x 6 x 3 pixels need 6,048 bytes in {tmp_path} and 6,047 are free: "):
        load_dataset(str(photos), cache=tmp_path, progress=lambda stage, done, total: decoded.append(done))
    assert decoded == []
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=6_048))
    assert is_mapped(load(photos, tmp_path).train.images)


@pytest.mark.usefixtures("mapped")
def test_a_disk_that_fills_up_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(descriptor: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fill)
    with pytest.raises(DataError, match=f"the file in {tmp_path} cannot be written: No space left on device"):
        Storage(tmp_path).allocate((5, 5))


@pytest.mark.usefixtures("mapped")
def test_the_file_has_blocks_on_the_disk_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to a mapping of a sparse file kills the process if the disk is full."""
    reserved: list[int] = []

    def reserve(file: int, start: int, size: int) -> None:
        reserved.append(size)
        os.ftruncate(file, size)

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    Storage(tmp_path).allocate((5, 5))
    assert reserved == [25]


@pytest.mark.usefixtures("mapped")
def test_the_folder_for_temporary_files_replaces_a_read_only_cache(
    readable_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable_folder.chmod(0o555)
    notices: list[str] = []
    with as_nobody():
        for cache in (readable_folder, readable_folder / "new"):
            assert is_mapped(Storage(cache, notices.append).allocate((5, 5)))
    assert len(notices) == 2
    assert not any(str(readable_folder) in notice for notice in notices)


@pytest.mark.usefixtures("mapped")
def test_released_pages_keep_their_values(tmp_path: Path) -> None:
    images = Storage(tmp_path).allocate((3, 30 << 20, 1, 1))[1:]
    before = measure_resident_bytes()
    images[1, :: mmap.PAGESIZE] = 7
    assert measure_resident_bytes() - before > 20 << 20
    release_pages(images[1, :, 0])
    assert measure_resident_bytes() - before < 5 << 20
    assert (images[1, :: mmap.PAGESIZE] == 7).all()


@pytest.mark.parametrize("private", [False, True])
def test_other_arrays_are_left_as_they_are(tmp_path: Path, private: bool) -> None:
    images = np.zeros((4, 2, 2, 1), np.uint8)
    if private:
        (tmp_path / "x").write_bytes(bytes(16))
        images = np.memmap(tmp_path / "x", np.uint8, "c", shape=(4, 2, 2, 1))
    images[:] = 5
    release_pages(images)
    assert (images == 5).all()


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_blocks_hold_all_images_in_their_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(count * 8 * 6 * 3).astype(np.uint8).reshape(count, 8, 6, 3)
    blocks = list(read_blocks(images))
    assert [len(block) for block in blocks] == [3] * (count // 3) + [count % 3] * (count % 3 > 0)
    assert not blocks or np.array_equal(np.concatenate(blocks), images)


@pytest.mark.usefixtures("mapped")
def test_images_are_kept_and_copied_in_blocks(tmp_path: Path) -> None:
    images = Storage(tmp_path).allocate((20, 8, 6, 3))
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    wanted, rows = images.copy(), np.array([0, 2, 3, 4, 9, 10, 11, 17, 19])
    copied = Storage(tmp_path).copy(images, rows)
    assert is_mapped(copied)
    assert np.array_equal(copied, wanted[rows])
    kept = Split(images, np.arange(20)).keep(rows)
    assert is_mapped(kept.images)
    assert np.array_equal(kept.images, wanted[rows])


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from training.datasets import storage;"
        "storage.IN_MEMORY_BYTES = 0; images = storage.Storage(Path(sys.argv[1])).allocate((1 << 20,)); images[7] = 1;"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    assert list(tmp_path.iterdir()) == []


def measure_resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
