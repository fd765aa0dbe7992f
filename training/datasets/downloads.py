"""Published data sets: found in a cache, or downloaded into it once; verified by checksum every time."""

from __future__ import annotations

import gzip
import hashlib
import time
import zlib
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from training.datasets.dataset import Progress
from training.errors import DataError

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30.0  # without a byte
ATTEMPTS = 4
PAUSE_S = 1.0  # before the second attempt, doubled before every further one

# Name -> where its files are; file -> bytes and sha256 of its content. Source: tensorflow-datasets' url_checksums, and
# for the content of the .gz files lists of their checksums; docs/decisions says what they were compared with.
SOURCES = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
}
FILES = {
    "mnist": {
        "train-images-idx3-ubyte.gz": (9912422, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        "train-labels-idx1-ubyte.gz": (28881, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        "t10k-images-idx3-ubyte.gz": (1648877, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        "t10k-labels-idx1-ubyte.gz": (4542, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": (26421880, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        "train-labels-idx1-ubyte.gz": (29515, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        "t10k-images-idx3-ubyte.gz": (4422102, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        "t10k-labels-idx1-ubyte.gz": (5148, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    },
    "cifar10": {
        "cifar-10-binary.tar.gz": (170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    },
}


def find_or_fetch(name: str, cache: Path, progress: Progress) -> Path:
    """Verify the files of a published data set in ``cache/name``, and download there those that are missing.

    Returns:
        The file, or the folder if there are several; a .gz may lie there unpacked.

    Raises:
        DataError: a file is not what was published, or cannot be downloaded.
    """
    for file, (size_bytes, sha256) in FILES[name].items():
        path = cache / name / file
        found = next((found for found in (path, path.with_name(file.removesuffix(".gz"))) if found.exists()), None)
        if found is None:
            fetch(SOURCES[name] + file, sha256, size_bytes, path, progress)
        elif (digest := hash_content(found, found.name)) != sha256:
            raise DataError(f"{found} is not what was published, its sha256 is {digest}, not {sha256}: remove it")
    return path if len(FILES[name]) == 1 else path.parent


def fetch(url: str, sha256: str, size_bytes: int, path: Path, progress: Progress) -> None:
    """Download a file, going on where an earlier attempt was cut; it appears whole and verified, or not at all.

    Until then it lies beside ``path`` with ``.partial`` appended.

    Raises:
        DataError: the server or the folder cannot be used, or the file is not what was published.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, size_bytes, partial, progress)
        digest = hash_content(partial, path.name)
        if digest == sha256:
            partial.replace(path)
            return
        partial.unlink()
    except (OSError, HTTPException) as error:
        todo = f"run again to go on where it stopped, or put the file at {path}"
        raise DataError(f"{url} could not be downloaded, {error}: {todo}") from error
    todo = f"it was removed; run again, or put the right file at {path}"
    raise DataError(f"{url} is not what was published, its sha256 is {digest}, not {sha256}: {todo}")


def hash_content(path: Path, name: str) -> str:
    """The sha256 of a file; of a .gz (but not .tar.gz) what it holds: distributions compress the same content anew."""
    try:
        with gzip.open(path) if Path(name).suffixes == [".gz"] else path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):  # damaged: equal to nothing that was published
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(url: str, size_bytes: int, partial: Path, progress: Progress) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _resume(url, size_bytes, partial, progress)
        except (OSError, HTTPException) as error:
            code = error.code if isinstance(error, HTTPError) else 500
            if code == 416:  # the partial file ends where the server has nothing: begin again
                partial.unlink()
            if attempt == ATTEMPTS or (code < 500 and code != 416):
                raise
        time.sleep(PAUSE_S * 2 ** (attempt - 1))
    return None


def _resume(url: str, size_bytes: int, partial: Path, progress: Progress) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    if done >= size_bytes:
        return  # the checksum decides
    request = Request(url, headers={"Range": f"bytes={done}-"} if done else {})  # noqa: S310, from the table above
    with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
        if response.status != 206:
            done = 0  # the server ignores Range and sends the whole file
        with partial.open("ab" if done else "wb") as file:
            while done <= size_bytes and (chunk := response.read(CHUNK_BYTES)):
                file.write(chunk)
                done += len(chunk)
                progress("downloading", done, size_bytes)
    if done < size_bytes:
        raise ConnectionError(f"cut after {done:,} of {size_bytes:,} bytes")
