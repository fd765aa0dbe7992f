"""Files that are read again when they change."""

from __future__ import annotations

from pathlib import Path

Signature = tuple[int, ...]


def sign_file(path: Path) -> Signature:
    """What tells one state of a file from another: which it is, its length, when it was written; () if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
