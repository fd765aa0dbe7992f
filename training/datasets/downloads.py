"""Finds the files of published data sets in a cache or downloads them there; checksums are verified every time."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from evalmode.errors import DataError
from training.datasets.dataset import Progress

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30.0  # without a byte
ATTEMPTS = 4
PAUSE_S = 1.0  # before the second attempt; doubled before each further one


@dataclass(frozen=True)
class PublishedFile:
    """A file that a data set is published as.

    Attributes:
        url: The address to download it from.
        size_bytes: The size of the download.
        sha256: The checksum of its content: of what a .gz file decompresses to, and of a .tar.gz file as it is.
    """

    url: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


def find_or_fetch(files: Sequence[PublishedFile], folder: Path, progress: Progress) -> None:
    """Verify the files in a folder and download those that are missing.

    A .gz file may be present in decompressed form, under its name without the suffix.

    Args:
        files: The files.
        folder: The folder; it is created for a download.
        progress: Called with "downloading", the bytes received and the size.

    Raises:
        DataError: The checksum of a file is wrong, or a file cannot be downloaded.
    """
    for file in files:
        path = folder / file.name
        found = next((one for one in (path, path.with_name(file.name.removesuffix(".gz"))) if one.exists()), None)
        if found is None:
            fetch(file, path, progress)
        elif (digest := hash_content(found, found.name)) != file.sha256:
            raise DataError(f"{found} is not the published file: its sha256 is {digest}, not {file.sha256}. Remove it")


def fetch(file: PublishedFile, path: Path, progress: Progress) -> None:
    """Download a file, continuing an earlier partial download.

    The download is written beside ``path`` with ``.partial`` appended, and moved to ``path`` once it is complete and
    verified. Of several processes one downloads it, and the others wait.

    Args:
        file: The file.
        path: Where to put it.
        progress: Called with "downloading", the bytes received and the size.

    Raises:
        DataError: The server or the folder cannot be used, or the checksum is wrong.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent):
            if path.exists():  # another process downloaded it in the meantime
                return
            _download(file, partial, progress)
            digest = hash_content(partial, path.name)
            if digest == file.sha256:
                partial.replace(path)
                return
            partial.unlink()
    except (OSError, HTTPException) as error:
        raise DataError(
            f"{file.url} could not be downloaded: {error}. Run again to continue the download, or put the file at "
            f"{path}"
        ) from error
    raise DataError(
        f"{file.url} is not the published file: its sha256 is {digest}, not {file.sha256}. The download was removed; "
        f"run again, or put the right file at {path}"
    )


def hash_content(path: Path, name: str) -> str:
    """Compute the checksum of a file's content.

    A .gz file is decompressed for it, because distributions compress the same content anew; a .tar.gz file is not.

    Args:
        path: The file.
        name: The name it was published under; the suffixes decide.

    Returns:
        The sha256 as hexadecimal digits. A damaged .gz file is hashed as it is, which equals no published checksum.
    """
    try:
        with gzip.open(path) if Path(name).suffixes == [".gz"] else path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Wait until no other process downloads into a folder. The system ends the lock of a process that is killed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _download(file: PublishedFile, partial: Path, progress: Progress) -> None:
    """Complete the partial file, with several attempts if the server or the connection fails."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _resume(file, partial, progress)
        except (OSError, HTTPException) as error:
            code = error.code if isinstance(error, HTTPError) else 500
            if code == 416:  # range not satisfiable: the partial file is longer than the server's
                partial.unlink()
            if attempt == ATTEMPTS or (code < 500 and code != 416):
                raise
        time.sleep(PAUSE_S * 2 ** (attempt - 1))
    return None


def _resume(file: PublishedFile, partial: Path, progress: Progress) -> None:
    """Request the bytes after those in the partial file, and append them."""
    done, total = partial.stat().st_size if partial.exists() else 0, file.size_bytes
    if done >= total:
        return  # the checksum is compared by the caller
    headers = {"Range": f"bytes={done}-"} if done else {}
    request = Request(file.url, headers=headers)  # noqa: S310  addresses come from the catalog
    with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
        if response.status != 206:
            done = 0  # the server ignores Range and sends the whole file
        with partial.open("ab" if done else "wb") as received:
            while done <= total and (chunk := response.read(CHUNK_BYTES)):
                received.write(chunk)
                done += len(chunk)
                progress("downloading", done, total)
    if done < total:
        raise ConnectionError(f"the connection closed after {done:,} of {total:,} bytes")
