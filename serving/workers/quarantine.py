"""Versions that are not loaded again, because workers ended while they loaded them."""

from __future__ import annotations

import threading
from collections import Counter

from evalmode.errors import ArtifactInvalid, TrialUnavailable
from serving.workers.state import FileVersion

MAX_ENDS = 2  # the first may have another reason: the system was short of memory, or an operator ended the process


class Quarantine:
    """Counts the workers that end while they load a file, by its digest. Methods may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: Counter[str] = Counter()

    def __contains__(self, version: FileVersion) -> bool:
        """Whether a version is not loaded again."""
        return self._ends[version[2]] >= MAX_ENDS

    def has_ended_one(self, version: FileVersion) -> bool:
        """Whether a worker has ended while it loaded a version."""
        return bool(self._ends[version[2]])

    def note_end(self, version: FileVersion, how: str) -> ArtifactInvalid | TrialUnavailable:
        """Note that a worker ended while it loaded a version.

        Args:
            version: The version.
            how: Which worker ended, and how.

        Returns:
            Why the version is not loaded: ``TrialUnavailable`` if it can be tried again, otherwise ``ArtifactInvalid``.
        """
        name, number, digest = version
        with self._lock:
            self._ends[digest] += 1
            if self._ends[digest] < MAX_ENDS:
                return TrialUnavailable(
                    f"{how} while it loaded {name}/{number}. If that happens again, it is quarantined"
                )
        return ArtifactInvalid(
            f"workers ended twice while they loaded {name}/{number}, {digest}: {how}. It is not loaded again until its "
            "file changes or a call loads it"
        )

    def note_loaded(self, version: FileVersion) -> None:
        """Note that a version was loaded: what happened before does not count.

        Args:
            version: The version.
        """
        with self._lock:
            self._ends.pop(version[2], None)
