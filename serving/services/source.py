"""Where models come from: a model repository, and how one version of a model is checked and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalmode.artifact.repository import find_artifact, list_names, list_versions
from evalmode.artifact.strays import explain_missing
from evalmode.limits import Limits
from evalmode.runtime.loading import LoadOptions, load_model
from evalmode.runtime.model import Model
from serving.trials import Trials

Key = tuple[str, int]  # name and version of a model


class Source:
    """A model repository, and how its versions are loaded. Methods may be called from several threads.

    Args:
        repository: The folder.
        pinned: The models that are served in one fixed version, by name, with that version.
        trials: The child processes that check a version before it is loaded. Default: with the default limits.
        follow_links: Whether symbolic links may lead out of the repository.
        load_options: The fields of ``LoadOptions``.

    Attributes:
        repository: The folder.
        pinned: The models that are served in one fixed version, by name, with that version.
        trials: The child processes that check a version before it is loaded.
    """

    def __init__(
        self,
        repository: Path,
        pinned: Mapping[str, int] | None = None,
        trials: Trials | None = None,
        follow_links: bool = False,
        **load_options: Any,
    ) -> None:
        self.repository = repository
        self.pinned = pinned or {}
        self.trials = trials or Trials(Limits())
        self._follow_links = follow_links
        self._load_options = LoadOptions(**load_options)

    def list_names(self) -> list[str]:
        """The names of all models in the repository."""
        return list_names(self.repository)

    def list_versions(self, name: str) -> list[int]:
        """The versions of a model in the repository, in ascending order; empty if there is no such model."""
        return list_versions(self.repository, name)

    def explain_missing(self, name: str = "") -> str:
        """Why the repository, or a model in it, has no version."""
        return explain_missing(self.repository, name)

    def find_artifact(self, key: Key) -> Path:
        """The file of a version.

        Raises:
            NameInvalid: The name cannot be that of a model.
            ArtifactInvalid: The file does not exist, or is outside the repository.
        """
        return find_artifact(self.repository, *key, self._follow_links)

    def load(self, key: Key) -> Model:
        """Check a version in a child process, then load it.

        Raises:
            NameInvalid: The name cannot be that of a model.
            ArtifactInvalid: The file is not a valid artifact.
            ProviderUnavailable: The execution provider is not available.
            TrialUnavailable: The child process cannot be started at the moment.
        """
        name, version = key
        path = self.find_artifact(key)
        return load_model(path, name=name, version=str(version), examine=self._examine, options=self._load_options)

    def _examine(self, artifact: bytes) -> None:
        self.trials.examine(artifact, self._load_options.allow_uncertified)
