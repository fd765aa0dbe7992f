"""The models of a worker: loaded here, chosen by the supervisor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evalmode.errors import DeadlineExpired, ServerLeaving
from evalmode.runtime.loading import LoadOptions, load_artifact
from serving.services.loaded import Entry, LoadedModels
from serving.services.source import Facts
from serving.workers.channel import Channel, ChannelClosed, ChannelLate, Message
from serving.workers.state import FileVersion


class WorkerModels(LoadedModels):
    """Models that the supervisor keeps up to date with the repository, in all workers alike.

    Args:
        options: How artifacts are loaded.
        channel: The channel to the supervisor.
    """

    def __init__(self, options: LoadOptions, channel: Channel) -> None:
        super().__init__({})
        self._options = options
        self._channel = channel
        self._entries: list[Entry] = []

    def take(self, name: str, version: str, artifact: bytes) -> Facts:
        """Load a version, which answers requests once ``put`` names it.

        Args:
            name: The name of the model.
            version: The version.
            artifact: The bytes of its file.

        Raises:
            ArtifactInvalid: The file is not a valid artifact.
            ProviderUnavailable: The execution provider is not available.
        """
        model = load_artifact(artifact, name=name, version=version, options=self._options)
        with self._changed:
            self._arrived[name, int(version)] = model
        return Facts.of(model)

    def put(
        self,
        served: Mapping[str, Sequence[FileVersion]],
        entries: list[Entry],
        pending: Sequence[FileVersion],
        partial: bool,
    ) -> list[FileVersion]:
        """Answer requests by these versions from now on, unless one of them is missing.

        Args:
            served: The versions of each model, by name, the newest first.
            entries: What ``list_entries`` returns from now on, where missing versions are not ready.
            pending: Versions that may follow: they stay loaded although they do not answer.
            partial: Whether missing versions are left out.

        Returns:
            The versions that are not loaded.
        """
        with self._changed:
            known = {(one.name, one.version, one.digest): one for one in (*self._arrived.values(), *self.loaded)}
            missing = [version for versions in served.values() for version in versions if version not in known]
            if missing and not partial:
                return missing
            chosen = {
                name: tuple(known[version] for version in versions if version in known)
                for name, versions in served.items()
            }
            self._loaded = {name: models for name, models in chosen.items() if models}
            self._arrived = {
                key: one for key, one in self._arrived.items() if (one.name, one.version, one.digest) in pending
            }
            self._entries = [_mark_missing(entry, missing) for entry in entries]
            self._on_change(self._entries)
        return missing

    def list_entries(self) -> list[Entry]:
        """See ``LoadedModels``."""
        return self._entries

    def load(self, name: str, timeout_s: float | None = None) -> None:
        """Let all workers load the newest version in the repository.

        Args:
            name: The name of the model.
            timeout_s: Seconds to wait for it; None: no limit.

        Raises:
            ModelNotFound: The repository has no such model.
            ModelInvalid: Its newest version cannot be loaded.
            DeadlineExpired: The version is still being checked.
        """
        self._ask("load", {"name": name, "timeout_s": timeout_s}, timeout_s)

    def unload(self, name: str, version: str = "") -> None:
        """Let all workers unload a model, or one version of it, until it is loaded again by a call.

        Args:
            name: The name of the model.
            version: The version, "" for all.

        Raises:
            ModelNotFound: The model is not loaded.
        """
        self._ask("unload", {"name": name, "version": version}, None)

    def _ask(self, kind: str, message: Message, timeout_s: float | None) -> None:
        """Let the supervisor do something in all workers.

        Raises:
            DeadlineExpired: It is not done yet.
            ServerLeaving: The supervisor has ended.
        """
        try:
            self._channel.ask(kind, message, timeout_s=timeout_s)
        except ChannelLate as error:
            raise DeadlineExpired(f"{kind} of {message['name']} is not done yet: RepositoryIndex reports it") from error
        except ChannelClosed as error:
            raise ServerLeaving("the server is shutting down: call another server") from error


def _mark_missing(entry: Entry, missing: Sequence[FileVersion]) -> Entry:
    """Return an entry as this worker reports it: a version that only other workers have is not ready here."""
    if (entry.name, entry.version) in {(name, version) for name, version, _ in missing}:
        return replace(entry, state="UNAVAILABLE", reason=entry.reason or "this worker could not load it", failed=True)
    return entry
