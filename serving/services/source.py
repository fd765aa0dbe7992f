"""Where models come from: a model repository, and how one version of a model is checked and loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalmode.artifact.repository import find_artifact, list_names, list_versions
from evalmode.artifact.strays import explain_missing
from evalmode.limits import Limits
from serving.trials import Trials

if TYPE_CHECKING:
    from evalmode.runtime.model import Model

log = logging.getLogger(__name__)

Key = tuple[str, int]  # name and version of a model


class Facts(NamedTuple):
    """What the log says about a loaded version.

    Attributes:
        name: The name of the model.
        version: The version.
        provider: The execution provider.
        digest: The digest of the file.
        certified: Whether the file has a certificate.
        batch_invariant: Whether an answer is the same in every batch.
        max_batch: The largest batch.
    """

    name: str
    version: str
    provider: str
    digest: str
    certified: bool
    batch_invariant: bool
    max_batch: int

    @classmethod
    def of(cls, model: Model) -> Facts:
        """The facts of a loaded model."""
        certified = model.manifest.certificate is not None
        limits = (model.batch_invariant, model.max_batch)
        return cls(model.name, model.version, model.provider.name, model.digest, certified, *limits)


def log_loaded(facts: Facts) -> None:
    """Log that a version was loaded, and what limits it."""
    name = f"{facts.name}/{facts.version}"
    log.info("loaded %s on %s, %s", name, facts.provider, facts.digest)
    if not facts.certified:
        log.warning("%s has no certificate: its answers are not verified", name)
    elif not facts.batch_invariant and facts.max_batch == 1:
        log.warning("%s gives other answers in a batch than alone: it runs one image at a time", name)


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
        self._load_options = load_options

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
        from evalmode.runtime.loading import LoadOptions, load_model  # onnxruntime: the process may need none

        name, version = key
        path, options = self.find_artifact(key), LoadOptions(**self._load_options)
        model = load_model(path, name=name, version=str(version), examine=self.examine, options=options)
        log_loaded(Facts.of(model))
        return model

    def examine(self, artifact: bytes) -> None:
        """Check a file in a child process.

        Args:
            artifact: The bytes of the file.

        Raises:
            ArtifactInvalid: The file is not a valid artifact.
            TrialUnavailable: The child process cannot be started at the moment.
        """
        self.trials.examine(artifact, self._load_options.get("allow_uncertified", False))
