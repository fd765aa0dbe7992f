"""The model repository as the supervisor follows it: it has each version checked, then loaded by every worker."""

from __future__ import annotations

from typing import Any

from evalmode.errors import ArtifactInvalid
from serving.services.source import Key, Source, log_loaded
from serving.workers.group import WorkerGroup
from serving.workers.state import Artifact, Loaded


class SharedSource(Source):
    """A model repository whose versions are loaded by all workers, not by this process.

    Args:
        group: The workers.
        source: See ``Source``.
    """

    def __init__(self, group: WorkerGroup, **source: Any) -> None:
        super().__init__(**source)
        self._group = group

    def load(self, key: Key) -> Any:
        """Check a version in a child process, then let one worker after the other load it.

        Args:
            key: The name and the version.

        Returns:
            A ``Loaded``.

        Raises:
            NameInvalid: The name cannot be that of a model.
            ArtifactInvalid: The file is not a valid artifact, or a second worker ended while it loaded it.
            ProviderUnavailable: The execution provider is not available.
            TrialUnavailable: No process can check or load it at the moment, or a worker ended while it loaded it.
        """
        name, version = key
        path = self.layout.find_artifact(*key)
        try:
            artifact = Artifact(path)
            contents = artifact.read()
            self.examine(contents)
            facts = self._group.take((name, str(version), artifact.digest), contents)
        except ArtifactInvalid as error:
            raise type(error)(f"{path}: {error}", **error.facts) from error
        log_loaded(facts)
        return Loaded(facts, artifact)
