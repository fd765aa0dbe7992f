"""What all workers serve: versions by the digests of their files, and what RepositoryIndex reports."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from evalmode.errors import ArtifactInvalid
from serving.services.loaded import Entry
from serving.services.models import Models
from serving.services.source import Facts, Key

MAX_ARTIFACT_BYTES = 2**31 - 1  # protobuf's own limit

FileVersion: TypeAlias = tuple[str, str, str]  # name, version and digest


class Artifact:
    """A file that can be read as long as this object exists, even if it was removed from the repository.

    Args:
        path: The file.

    Attributes:
        digest: ``sha256:`` and the hexadecimal digest of its contents when it was opened.

    Raises:
        ArtifactInvalid: It cannot be read, or is too large.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
            size = os.fstat(self._descriptor).st_size
            if size > MAX_ARTIFACT_BYTES:
                raise ArtifactInvalid(f"{size} bytes, protobuf reads at most {MAX_ARTIFACT_BYTES}")
            self.digest = _digest(self._read())
        except OSError as error:
            raise ArtifactInvalid(str(error)) from error

    def read(self) -> bytes:
        """The contents.

        Raises:
            ArtifactInvalid: They have changed since the file was opened.
        """
        contents = self._read()
        if _digest(contents) != self.digest:
            raise ArtifactInvalid(f"{self._path} has changed since it was loaded")
        return contents

    def _read(self) -> bytes:
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()


@dataclass(frozen=True, eq=False)
class Loaded:
    """A version that the workers have loaded: what the supervisor has instead of a model.

    Attributes:
        facts: What the log says about it.
        artifact: Its file, for workers that start later.
    """

    facts: Facts
    artifact: Artifact

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.facts.name

    @property
    def version(self) -> str:
        """The version."""
        return self.facts.version

    @property
    def key(self) -> FileVersion:
        """The name, the version and the digest."""
        return self.name, self.version, self.artifact.digest


@dataclass(frozen=True)
class State:
    """What all workers serve.

    Attributes:
        served: The versions of each model, by name, the newest first.
        entries: All versions that are in the repository or loaded.
        artifacts: The files of the versions.
        arrived: Versions that all workers have loaded and that may be served later.
        on_trial: Names and versions that are being checked and loaded, or wait for it.
        generation: The number of the state, which grows by one with each.
    """

    served: Mapping[str, list[FileVersion]]
    entries: list[Entry]
    artifacts: Mapping[FileVersion, Artifact] = field(default_factory=dict)
    arrived: frozenset[FileVersion] = frozenset()
    on_trial: frozenset[Key] = frozenset()
    generation: int = 0

    @classmethod
    def of(cls, models: Models, entries: list[Entry]) -> State:
        """Make a state.

        Args:
            models: The models, loaded from a ``SharedSource``.
            entries: All versions that are in the repository or loaded.
        """
        loaded: Any = models.loaded  # each is a ``Loaded``
        arrived: Any = models.arrived  # the same
        served: dict[str, list[FileVersion]] = {}
        for one in loaded:
            served.setdefault(one.name, []).append(one.key)
        artifacts = {one.key: one.artifact for one in loaded}
        return cls(served, entries, artifacts, frozenset(one.key for one in arrived), models.on_trial)

    def number(self, generation: int) -> State:
        """The same state with a number."""
        return replace(self, generation=generation)

    def may_follow(self, version: FileVersion) -> bool:
        """Whether a version that workers have loaded, and that is not served, may be served later.

        Args:
            version: The version.
        """
        name, number, _ = version
        return version in self.arrived or (name, int(number)) in self.on_trial

    def read(self, version: FileVersion) -> bytes:
        """The file of a version.

        Raises:
            ArtifactInvalid: It has changed since it was loaded.
        """
        return self.artifacts[version].read()


def _digest(contents: bytes) -> str:
    return f"sha256:{hashlib.sha256(contents).hexdigest()}"
