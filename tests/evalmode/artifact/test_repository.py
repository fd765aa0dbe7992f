"""Publishing is atomic: a version is whole or absent, even if the publisher is killed, and no version is shared."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evalmode.artifact.publishing import publish
from evalmode.artifact.repository import ARTIFACT_FILE, check_name, find_artifact, list_names, list_versions
from evalmode.errors import NameInvalid

# Publishes a file for every line of standard input. Each file starts with the digest of its remaining bytes.
PUBLISHER = """
import hashlib, os, sys
from pathlib import Path
from evalmode.artifact.publishing import publish
body = os.urandom(1) * int(sys.argv[2])
print("ready", flush=True)
for _ in iter(sys.stdin.readline, ""):
    print(publish(Path(sys.argv[1]), "model", hashlib.sha256(body).digest() + body).parent.name, flush=True)
"""


@contextlib.contextmanager
def publisher(repository: Path, size_bytes: int):
    """A process that publishes once for every line it reads."""
    command = [sys.executable, "-c", PUBLISHER, str(repository), str(size_bytes)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        with contextlib.suppress(BrokenPipeError):  # lines that it has not read
            process.communicate()


def is_whole(path: Path) -> bool:
    content = path.read_bytes()
    return content[:32] == hashlib.sha256(content[32:]).digest()


def list_paths(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class TestPublish:
    def test_counts_versions_from_one(self, tmp_path: Path) -> None:
        for number in (1, 2, 3):
            path = publish(tmp_path, "cats", b"artifact %d" % number)
            assert path == find_artifact(tmp_path, "cats", number) == tmp_path / "cats" / str(number) / "model.onnx"
            assert path.read_bytes() == b"artifact %d" % number
        assert publish(tmp_path, "dogs", b"other").parent.name == "1"
        assert list_versions(tmp_path, "cats") == [1, 2, 3]
        assert list_names(tmp_path) == ["cats", "dogs"]
        assert not [name for name in list_paths(tmp_path) if "incoming" in name]

    def test_orders_versions_by_number(self, tmp_path: Path) -> None:
        for number in (2, 9, 10):
            (tmp_path / "cats" / str(number)).mkdir(parents=True)
            (tmp_path / "cats" / str(number) / ARTIFACT_FILE).write_bytes(b"old")
        assert publish(tmp_path, "cats", b"next").parent.name == "11"
        assert list_versions(tmp_path, "cats") == [2, 9, 10, 11]

    def test_skips_numbers_of_existing_files_and_folders(self, tmp_path: Path) -> None:
        (tmp_path / "cats" / "1").mkdir(parents=True)
        (tmp_path / "cats" / "2").write_text("a file")
        assert publish(tmp_path, "cats", b"next").parent.name == "3"

    def test_creates_the_repository(self, tmp_path: Path) -> None:
        assert publish(tmp_path / "deep" / "models", "cats", b"x").is_file()

    def test_is_readable_by_other_users(self, tmp_path: Path) -> None:
        path = publish(tmp_path, "cats", b"x")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755

    def test_is_readable_by_other_users_under_a_strict_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            path = publish(tmp_path, "cats", b"x")
        finally:
            os.umask(before)
        assert path.stat().st_mode & stat.S_IROTH
        for folder in (path.parent, path.parent.parent):
            assert folder.stat().st_mode & (stat.S_IROTH | stat.S_IXOTH) == stat.S_IROTH | stat.S_IXOTH

    def test_keeps_the_mode_of_an_existing_folder(self, tmp_path: Path) -> None:
        shared = tmp_path / "cats"
        shared.mkdir()
        shared.chmod(0o2775)  # a group that publishes together
        publish(tmp_path, "cats", b"x")
        assert stat.S_IMODE(shared.stat().st_mode) == 0o2775

    def test_leaves_no_file_after_an_error(self, tmp_path: Path) -> None:
        publish(tmp_path, "cats", b"x")
        before = list_paths(tmp_path)
        with pytest.raises(TypeError):
            publish(tmp_path, "cats", "text")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            publish(tmp_path, "dogs", "text")  # type: ignore[arg-type]
        with pytest.raises(NameInvalid):
            publish(tmp_path, "..", b"x")
        assert list_paths(tmp_path) == before

    def test_leaves_no_file_after_an_error_of_the_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(tmp_path, "cats", b"x")
        before = list_paths(tmp_path)

        def fails(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="No space"):
            publish(tmp_path, "cats", b"y")
        assert list_paths(tmp_path) == before

    def test_syncs_the_file_before_it_is_visible_and_the_folder_after(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced = []

        def record(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            assert path.is_relative_to(tmp_path)  # a rename is atomic only within one file system
            synced.append((path.name, list_versions(tmp_path, "cats"), path.is_dir() or path.stat().st_size))

        monkeypatch.setattr(os, "fsync", record)
        publish(tmp_path, "cats", b"12345")
        assert synced[0] == (ARTIFACT_FILE, [], 5)
        assert synced[-1] == ("cats", [1], True)


class TestNames:
    @pytest.mark.parametrize("name", ["a", "0", "Model.v2_b-1", "x" * 128])
    def test_of_safe_folders_are_allowed(self, tmp_path: Path, name: str) -> None:
        assert check_name(name) == name
        publish(tmp_path, name, b"x")
        assert list_names(tmp_path) == [name]

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            ".x",
            "a/b",
            "/a",
            "../a",
            "-a",
            "_a",
            "a b",
            "a\n",
            "a\0b",
            "ü",
            "catü",
            "cat☃",
            "x" * 129,
            "x" * 200,
        ],
    )
    def test_of_unsafe_folders_are_rejected(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(NameInvalid, match="not allowed: use up to 128"):
            publish(tmp_path / "models", name, b"x")
        assert list_paths(tmp_path) == []


class TestList:
    def test_ignores_other_files_and_folders_of_a_model(self, tmp_path: Path) -> None:
        publish(tmp_path, "cats", b"x")
        for junk in ("0", "01", "-1", "1.0", "abc", "1234567890", "٣", "1٣", ".incoming-x"):
            (tmp_path / "cats" / junk).mkdir()
            (tmp_path / "cats" / junk / ARTIFACT_FILE).write_bytes(b"junk")
        (tmp_path / "cats" / "7").mkdir()
        (tmp_path / "cats" / "8" / ARTIFACT_FILE).mkdir(parents=True)
        (tmp_path / "cats" / "9").write_text("a file")
        assert list_versions(tmp_path, "cats") == [1]
        assert list_names(tmp_path) == ["cats"]

    def test_ignores_other_files_and_folders_of_a_repository(self, tmp_path: Path) -> None:
        publish(tmp_path, "cats", b"x")
        (tmp_path / "README").write_text("a file")
        (tmp_path / "empty").mkdir()
        for junk in (".hidden", "a b"):
            (tmp_path / junk / "1").mkdir(parents=True)
            (tmp_path / junk / "1" / ARTIFACT_FILE).write_bytes(b"junk")
        assert list_names(tmp_path) == ["cats"]

    def test_is_empty_for_an_unknown_model(self, tmp_path: Path) -> None:
        assert list_versions(tmp_path, "cats") == []

    def test_is_empty_for_a_missing_repository(self, tmp_path: Path) -> None:
        assert list_names(tmp_path / "models") == []


def test_a_killed_publisher_leaves_only_whole_versions(tmp_path: Path) -> None:
    chance = random.Random(0)
    for _ in range(20):
        with publisher(tmp_path, 3_000_000) as process:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write("go\n" * 50)
                process.stdin.flush()
            if chance.random() < 0.5:
                process.stdout.readline()  # wait for the first version
            time.sleep(chance.uniform(0, 0.03))  # the process is killed at a random time
            process.kill()
            process.wait()
        versions = list_versions(tmp_path, "model")
        assert versions == list(range(1, len(versions) + 1))
        assert all(is_whole(find_artifact(tmp_path, "model", version)) for version in versions[-4:])
    assert versions, "every publisher was killed before its first version: nothing was tested"
    assert all(is_whole(find_artifact(tmp_path, "model", version)) for version in versions)
    newest = publish(tmp_path, "model", b"next")
    assert int(newest.parent.name) == versions[-1] + 1
    shutil.rmtree(tmp_path)  # pytest would keep a few hundred megabytes


def test_concurrent_publishers_get_different_versions(tmp_path: Path) -> None:
    count = 40
    with publisher(tmp_path, 1000) as first, publisher(tmp_path, 1000) as second:
        for process in (first, second):
            process.stdin.write("go\n" * count)
            process.stdin.flush()
        published = [[int(process.stdout.readline()) for _ in range(count)] for process in (first, second)]
    assert sorted(published[0] + published[1]) == list_versions(tmp_path, "model") == list(range(1, 2 * count + 1))
    assert all(is_whole(find_artifact(tmp_path, "model", version)) for version in range(1, 2 * count + 1))
    for versions in published:
        assert versions == sorted(versions)
