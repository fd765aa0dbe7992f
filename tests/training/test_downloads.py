"""Downloads from a local server: complete, resumed, interrupted, refused, and with other content than published."""

from __future__ import annotations

import gzip
import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from evalmode.errors import DataError
from training.datasets import DATASETS, downloads
from training.datasets.downloads import PublishedFile, fetch, find_or_fetch, hash_content

CONTENT = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """The files of the server, its behaviour, and the requests that it received."""

    files: dict[str, bytes] = field(default_factory=lambda: {"/data.bin": CONTENT})
    with_ranges: bool = True
    with_length: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes that the next responses send before they end
    fail_with: list[int] = field(default_factory=list)  # statuses of the next responses
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range header
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site: Site = self.server.site  # type: ignore[attr-defined]
        byte_range = self.headers["Range"]
        site.requests.append((self.path, byte_range))
        content = site.files.get(self.path)
        if site.fail_with or content is None:
            self.send_error(site.fail_with.pop(0) if site.fail_with else 404)
            return
        start = int(byte_range.removeprefix("bytes=").removesuffix("-")) if byte_range and site.with_ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if site.with_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: site.cut_after.pop(0) if site.cut_after else None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.site = Site(url=f"http://127.0.0.1:{server.server_port}/data.bin")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.site  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_pauses_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "PAUSE_S", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def ignore(what: str, done: int, total: int) -> None:
    pass


def get(site: Site, path: Path, progress=ignore, sha256: str = SHA256, size: int = len(CONTENT)) -> None:
    fetch(PublishedFile(site.url, size, sha256), path, progress)


# Successful downloads


def test_a_file_is_downloaded_into_a_folder_that_is_created(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "data.bin"
    get(site, path)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert site.requests == [("/data.bin", None)]


def test_of_several_processes_one_downloads_and_the_others_wait(site: Site, tmp_path: Path) -> None:
    path, entered, go_on = tmp_path / "data.bin", threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        entered.set()
        assert go_on.wait(30)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(get, site, path, hold)
        assert entered.wait(30)
        second = pool.submit(get, site, path)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        go_on.set()
        for one in (first, second):
            one.result(timeout=30)
    assert path.read_bytes() == CONTENT
    assert len(site.requests) == 1


def test_progress_is_reported_up_to_the_last_byte(site: Site, tmp_path: Path) -> None:
    reported: list[tuple[str, int, int]] = []
    get(site, tmp_path / "data.bin", lambda *event: reported.append(event))
    assert {what for what, _, _ in reported} == {"downloading"}
    done = [done for _, done, _ in reported]
    assert len(done) > 2
    assert done == sorted(done)
    assert reported[-1][1:] == (len(CONTENT), len(CONTENT))


def test_a_download_whose_connection_closes_is_resumed_automatically(site: Site, tmp_path: Path) -> None:
    site.cut_after = [300_000, 200_000]
    get(site, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [byte_range for _, byte_range in site.requests] == [None, "bytes=300000-", "bytes=500000-"]


def test_an_earlier_partial_file_is_completed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin.partial").write_bytes(CONTENT[:123_456])
    reported: list[int] = []
    get(site, tmp_path / "data.bin", lambda what, done, total: reported.append(done))
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [byte_range for _, byte_range in site.requests] == ["bytes=123456-"]
    assert reported[0] > 123_456
    assert not (tmp_path / "data.bin.partial").exists()


def test_a_complete_partial_file_is_not_requested_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin.partial").write_bytes(CONTENT)
    get(site, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert site.requests == []


def test_progress_counts_every_byte_once_if_the_server_ignores_range(site: Site, tmp_path: Path) -> None:
    site.with_ranges = False
    (tmp_path / "data.bin.partial").write_bytes(b"x" * 123_456)
    reported: list[int] = []
    get(site, tmp_path / "data.bin", lambda what, done, total: reported.append(done))
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [byte_range for _, byte_range in site.requests] == ["bytes=123456-"]
    assert reported[-1] == len(CONTENT)


def test_a_request_is_retried_after_a_server_error(site: Site, tmp_path: Path) -> None:
    site.fail_with = [503, 500]
    get(site, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert len(site.requests) == 3


def test_a_response_without_length_is_read_to_its_end(site: Site, tmp_path: Path) -> None:
    site.with_length = False
    get(site, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


# Failed downloads


def test_a_download_that_exhausts_its_attempts_keeps_the_received_bytes_for_the_next_run(
    site: Site, tmp_path: Path
) -> None:
    site.cut_after = [10_000] * downloads.ATTEMPTS
    path = tmp_path / "data.bin"
    with pytest.raises(
        DataError, match=r"could not be downloaded: the connection closed after 40,000 of 1,000,000 bytes"
    ) as refusal:
        get(site, path)
    assert site.url in str(refusal.value)
    assert f"Run again to continue the download, or put the file at {path}" in str(refusal.value)
    assert not path.exists()
    assert (tmp_path / "data.bin.partial").read_bytes() == CONTENT[:40_000]
    site.requests.clear()
    get(site, path)
    assert path.read_bytes() == CONTENT
    assert [byte_range for _, byte_range in site.requests] == ["bytes=40000-"]


def test_an_interrupted_download_keeps_the_received_bytes_for_the_next_run(site: Site, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done > 400_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(site, tmp_path / "data.bin", interrupt)
    received = (tmp_path / "data.bin.partial").read_bytes()
    assert 400_000 < len(received) < len(CONTENT)
    assert received == CONTENT[: len(received)]
    assert not (tmp_path / "data.bin").exists()
    get(site, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert site.requests[-1][1] == f"bytes={len(received)}-"


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 700_000])
@pytest.mark.parametrize("with_length", [True, False])
def test_other_content_is_removed_and_refused_with_both_digests(
    site: Site, tmp_path: Path, length: int, with_length: bool
) -> None:
    site.files["/data.bin"] = b"y" * length
    site.with_length = with_length
    with pytest.raises(DataError, match="is not the published file") as refusal:
        get(site, tmp_path / "data.bin")
    found = hashlib.sha256(b"y" * length).hexdigest()
    assert (found if length == len(CONTENT) else "its sha256 is") in str(refusal.value)
    assert SHA256 in str(refusal.value)
    assert site.url in str(refusal.value)
    assert str(tmp_path / "data.bin") in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_much_larger_than_published_is_not_read_to_its_end(site: Site, tmp_path: Path) -> None:
    site.files["/data.bin"] = b"y" * 20_000_000
    reported: list[int] = []
    with pytest.raises(DataError, match="is not the published file"):
        get(site, tmp_path / "data.bin", lambda what, done, total: reported.append(done))
    assert reported[-1] <= len(CONTENT) + downloads.CHUNK_BYTES


def test_a_partial_file_of_other_content_is_removed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin.partial").write_bytes(b"z" * 5000)
    with pytest.raises(DataError, match="is not the published file"):
        get(site, tmp_path / "data.bin")
    assert list(tmp_path.iterdir()) == []
    get(site, tmp_path / "data.bin")


def test_a_partial_file_longer_than_the_servers_file_is_downloaded_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin.partial").write_bytes(b"z" * 1500)
    site.files["/data.bin"] = CONTENT[:1000]
    with pytest.raises(DataError, match="closed after 1,000 of 1,000,000 bytes"):
        get(site, tmp_path / "data.bin")
    assert (tmp_path / "data.bin.partial").read_bytes() == CONTENT[:1000]


def test_a_missing_file_is_refused_without_a_retry(site: Site, tmp_path: Path) -> None:
    site.files.clear()
    with pytest.raises(DataError, match=r"data\.bin could not be downloaded: HTTP Error 404"):
        get(site, tmp_path / "data.bin")
    assert len(site.requests) == 1


def test_a_server_that_keeps_failing_gets_four_requests(site: Site, tmp_path: Path) -> None:
    site.fail_with = [503] * 10
    with pytest.raises(DataError, match="HTTP Error 503"):
        get(site, tmp_path / "data.bin")
    assert len(site.requests) == downloads.ATTEMPTS == 4


def test_an_unreachable_server_is_refused_with_the_path_for_a_manual_download(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/data.bin"
        with pytest.raises(DataError, match="Connection refused") as refusal:
            fetch(PublishedFile(url, len(CONTENT), SHA256), tmp_path / "data.bin", ignore)
    assert url in str(refusal.value)
    assert f"put the file at {tmp_path / 'data.bin'}" in str(refusal.value)


def test_a_server_that_does_not_respond_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/data.bin"
        with pytest.raises(DataError, match="timed out"):
            fetch(PublishedFile(url, len(CONTENT), SHA256), tmp_path / "data.bin", ignore)


def test_a_response_that_is_not_http_is_refused(tmp_path: Path) -> None:
    def answer() -> None:
        for _ in range(downloads.ATTEMPTS):
            with odd.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"220 smtp ready\r\n")

    with socket.create_server(("127.0.0.1", 0)) as odd:
        thread = threading.Thread(target=answer)
        thread.start()
        file = PublishedFile(f"http://127.0.0.1:{odd.getsockname()[1]}/a", 5, SHA256)
        with pytest.raises(DataError, match="could not be downloaded: 220 smtp"):
            fetch(file, tmp_path / "data.bin", ignore)
        thread.join()


def test_a_path_that_cannot_be_written_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"could not be downloaded: .*file"):
        get(site, tmp_path / "file" / "data.bin")
    assert site.requests == []


# Checksums


def test_the_digest_of_a_gz_file_is_that_of_its_decompressed_content(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"images", 1, mtime=1))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"images", 9, mtime=2))
    (tmp_path / "plain").write_bytes(b"images")
    expected = hashlib.sha256(b"images").hexdigest()
    assert {hash_content(tmp_path / name, name) for name in ("a.gz", "b.gz", "plain")} == {expected}


def test_the_digest_of_a_tar_gz_file_is_that_of_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"images"))
    expected = hashlib.sha256((tmp_path / "a.tar.gz").read_bytes()).hexdigest()
    assert hash_content(tmp_path / "a.tar.gz", "a.tar.gz") == expected


@pytest.mark.parametrize(
    "content",
    [b"no gzip", b"", gzip.compress(b"images", mtime=0)[:-9], gzip.compress(b"i", mtime=0)[:-8] + b"x" * 8],
    ids=["no gzip", "nothing", "cut", "another checksum"],
)
def test_a_damaged_gz_file_does_not_match_the_digest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gz").write_bytes(content)
    assert hash_content(tmp_path / "a.gz", "a.gz") != hashlib.sha256(b"images").hexdigest()


# By name


CONTENTS = {"images.gz": CONTENT[:5000], "labels.gz": CONTENT[5000:6000]}


@pytest.fixture
def pets(site: Site) -> tuple[PublishedFile, ...]:
    """Two small compressed files that the site publishes."""
    files = {name: gzip.compress(content) for name, content in CONTENTS.items()}
    site.files = {f"/{name}": packed for name, packed in files.items()}
    url = site.url.removesuffix("data.bin")
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    return tuple(PublishedFile(url + name, len(files[name]), digests[name]) for name in files)


def test_missing_files_are_downloaded_once(site: Site, pets: tuple[PublishedFile, ...], tmp_path: Path) -> None:
    find_or_fetch(pets, tmp_path / "pets", ignore)
    assert {path.name: gzip.decompress(path.read_bytes()) for path in (tmp_path / "pets").iterdir()} == CONTENTS
    site.requests.clear()
    find_or_fetch(pets, tmp_path / "pets", ignore)
    assert site.requests == []


def test_recompressed_or_decompressed_files_are_found(
    site: Site, pets: tuple[PublishedFile, ...], tmp_path: Path
) -> None:
    (tmp_path / "images.gz").write_bytes(gzip.compress(CONTENTS["images.gz"], 1, mtime=7))
    (tmp_path / "labels").write_bytes(CONTENTS["labels.gz"])
    find_or_fetch(pets, tmp_path, ignore)
    assert site.requests == []


def test_only_missing_files_are_downloaded(site: Site, pets: tuple[PublishedFile, ...], tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(CONTENTS["labels.gz"])
    find_or_fetch(pets, tmp_path, ignore)
    assert site.requests == [("/images.gz", None)]


@pytest.mark.parametrize("name", ["images.gz", "images"])
def test_a_file_with_another_checksum_is_refused(
    site: Site, pets: tuple[PublishedFile, ...], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"cats")
    with pytest.raises(DataError, match="is not the published file") as refusal:
        find_or_fetch(pets, tmp_path, ignore)
    assert str(tmp_path / name) in str(refusal.value)
    assert hashlib.sha256(b"cats").hexdigest() in str(refusal.value)
    assert hashlib.sha256(CONTENTS["images.gz"]).hexdigest() in str(refusal.value)
    assert (tmp_path / name).read_bytes() == b"cats"
    assert site.requests == []


def test_every_named_data_set_has_https_urls_and_complete_checksums() -> None:
    files = {name: dataset.files for name, dataset in DATASETS.items()}
    assert {name: len(listed) for name, listed in files.items()} == {
        "digits": 0,
        "mnist": 4,
        "fashion-mnist": 4,
        "cifar10": 1,
    }
    every = [file for listed in files.values() for file in listed]
    assert len({file.sha256 for file in every}) == len({file.url for file in every}) == 9
    assert all(len(bytes.fromhex(file.sha256)) == 32 for file in every)
    assert all(file.url.startswith("https://") for file in every)
