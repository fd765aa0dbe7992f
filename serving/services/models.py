"""The models that are served now, by name: found by every request, following the folder that they come from."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ArtifactInvalid, ModelInvalid, ModelNotFound, ModelUnspecified, UsageError
from serving.files import Signature, sign_file
from serving.model import Model, load_model
from serving.repository import ARTIFACT_FILE, find_artifact, list_names, list_versions

log = logging.getLogger(__name__)

ALL = 0  # in place of a version, where all of a model are meant
KEEP = 2  # versions of a model that stay loaded: the one before the newest, to go back to


@dataclass(frozen=True)
class Entry:
    """A version in the model repository.

    Attributes:
        name: the model's.
        version: its number.
        state: READY, or UNAVAILABLE where it is not loaded.
        reason: why it is not.
    """

    name: str
    version: str
    state: str
    reason: str

    @property
    def ready(self) -> bool:
        """Whether requests may ask for it."""
        return self.state == "READY"


class Models:
    """Models by name, and the repository that they follow.

    A request that names no version is answered by the newest one. Whatever changes, requests that have found their
    model are answered by it.

    Args:
        loaded: the first of them, by name: versions that are loaded, the newest first.
        repository: the folder.
        pinned: names that are served in one version, and which.
        keep: how many versions of a model stay loaded.
        load_options: of ``load_artifact``, for those to come.
    """

    def __init__(
        self,
        loaded: Mapping[str, tuple[Model, ...]],
        repository: Path,
        pinned: Mapping[str, int] | None = None,
        keep: int = KEEP,
        **load_options: Any,
    ) -> None:
        self._loaded = loaded
        self._repository = repository
        self._pinned = pinned or {}
        self._keep = keep
        self._load_options = load_options
        self._changing = threading.RLock()  # guards what follows, and every change of what is loaded
        self._tried: dict[tuple[str, int], Signature] = {}  # the file of each version as it was when it was read
        self._refused: dict[tuple[str, int], Exception] = {}  # those of them that could not be loaded
        self._unloaded: set[tuple[str, int]] = set()  # by a call
        self._lost: set[str] = set()  # served although the repository has no version of them any more
        self._on_change: Callable[[list[Entry]], None] = lambda entries: None

    @classmethod
    def open(cls, repository: Path, pinned: Mapping[str, int] | None = None, **options: Any) -> Models:
        """Load the newest version that can be served of every model of a repository.

        Raises:
            ArtifactInvalid: it holds no model, or none that can be loaded.
            ProviderUnavailable: CUDA was asked for and does not work here.
        """
        models = cls({}, repository, pinned, **options)
        names = list_names(repository)
        if not names:
            raise ArtifactInvalid(
                f"{repository} holds no <name>/<version>/{ARTIFACT_FILE}: publish one with 'evalmode export'"
            )
        for name in names:
            models._refresh(name, keep=1)  # those that are only kept can wait until this one answers
        for name, version in models._pinned.items():
            find_artifact(repository, name, version)
            if error := models._refused.get((name, version)):
                raise error
        if not models._loaded:
            raise next(iter(models._refused.values()))
        return models

    @property
    def served(self) -> Mapping[str, Model]:
        """What answers requests that name no version, by name."""
        return {name: versions[0] for name, versions in self._loaded.items()}

    @property
    def loaded(self) -> tuple[Model, ...]:
        """All that requests may ask for."""
        return tuple(model for versions in self._loaded.values() for model in versions)

    def find(self, name: str, version: str, field: str = "model") -> Model:
        """The model a request asks for.

        Args:
            name: its name; "" where one model is served.
            version: its version, "" for the newest.
            field: of the request that the name stands in.

        Raises:
            ModelUnspecified, ModelNotFound: none is told, or there is no such model.
        """
        loaded = self._loaded
        if name or len(loaded) == 1:
            for model in loaded.get(name or next(iter(loaded)), ()):
                if version in ("", model.version):
                    return model
        known = ", ".join(f"{one.name}/{one.version}" for versions in loaded.values() for one in versions) or "none"
        if not name and len(loaded) > 1:
            raise ModelUnspecified(f"several models are served, name one of {known}", field=field, served=known)
        wanted = f"{name or next(iter(loaded), '')}{'/' if version else ''}{version}"
        raise ModelNotFound(
            f"Request for unknown model: {wanted!r} is not found, served: {known}", model=wanted, served=known
        )

    def list_entries(self) -> list[Entry]:
        """Every version in the repository, or loaded although it is no longer there; also while another is loading."""
        loaded, entries = self._loaded, []
        for name in sorted({*loaded, *list_names(self._repository)}):
            ready = [int(model.version) for model in loaded.get(name, ()) if model.version]
            for version in sorted({*ready, *list_versions(self._repository, name)}):
                state = "READY" if version in ready else "UNAVAILABLE"
                entries.append(Entry(name, str(version), state, self._explain(name, version, ready)))
        return entries

    def follow(self, on_change: Callable[[list[Entry]], None]) -> None:
        """Tell what there is: now, and whenever it changes."""
        with self._changing:
            self._on_change = on_change
            on_change(self.list_entries())

    def watch(self, poll_s: float, stop: threading.Event) -> None:
        """Look every ``poll_s`` seconds what the repository holds, until told to stop."""
        while not stop.wait(poll_s):
            try:
                self.refresh()
            except Exception:  # of the file system, say: what is served goes on
                log.exception("the repository cannot be followed, what is loaded is served on")

    def refresh(self) -> None:
        """Load what is new in the repository, serve it, and forget what is gone."""
        with self._changing:
            before = self.list_entries()
            for name in sorted({*self._loaded, *list_names(self._repository)}):
                self._refresh(name, self._keep)
            if (after := self.list_entries()) != before:
                self._on_change(after)

    def load(self, name: str) -> None:
        """Serve the newest version in the repository; what is served so far goes on until that one is ready.

        Raises:
            ModelNotFound: the repository has no such model.
            ModelInvalid: its newest version cannot be loaded.
        """
        with self._changing:
            newest = self._pinned.get(name) or max(list_versions(self._repository, name), default=0)
            if not newest:
                raise ModelNotFound(f"model {name!r} is not found in the repository", model=name)
            self._unloaded = {entry for entry in self._unloaded if entry[0] != name}
            self._tried.pop((name, newest), None)  # whoever asks wants it read again
            self._refresh(name, self._keep)
            self._on_change(self.list_entries())
            if error := self._refused.get((name, newest)):
                raise ModelInvalid(f"{name}/{newest} cannot be loaded: {error}", model=name, version=newest) from error

    def unload(self, name: str, version: str = "") -> None:
        """Serve a model, or one version of it, no longer until it is loaded again; requests that found it are answered.

        Raises:
            ModelNotFound: it is not served.
        """
        with self._changing:
            versions = self._loaded.get(name, ())
            left = tuple(model for model in versions if version not in ("", model.version))
            if left == versions:
                wanted = f"{name}/{version}" if version else name
                raise ModelNotFound(f"model {wanted!r} is not found, so it cannot be unloaded", model=wanted)
            self._unloaded.add((name, int(version or ALL)))
            self._serve(name, left)
            self._on_change(self.list_entries())

    def _refresh(self, name: str, keep: int) -> None:
        """Hold the ``keep`` newest versions of a model that can be loaded; serve the newest as soon as it is ready."""
        versions = sorted(list_versions(self._repository, name), reverse=True)
        if not versions and name in self._loaded:
            if name not in self._lost:
                log.warning("%s has no version in the repository any more: what is loaded is served on", name)
            self._lost.add(name)
            return
        self._lost.discard(name)
        if name in self._pinned:
            versions = [self._pinned[name]]
        for one, version in [*self._tried]:
            if one == name and version not in versions:
                self._tried.pop((name, version))
                self._refused.pop((name, version), None)
        before = self._loaded.get(name, ())
        chosen: tuple[Model, ...] = ()
        for version in versions:
            if len(chosen) < keep and not self._unloaded & {(name, version), (name, ALL)}:
                model = self._get(name, version)
                if model and not chosen:
                    self._serve(name, (model, *(one for one in before if one.version != model.version)))
                chosen += (model,) if model else ()
        if chosen:
            self._serve(name, chosen)

    def _get(self, name: str, version: int) -> Model | None:
        """One version: the model that is loaded, one loaded now where its file is new, or None."""
        known = next((model for model in self._loaded.get(name, ()) if model.version == str(version)), None)
        key = (name, version)
        try:
            path = find_artifact(self._repository, name, version)
            signature = sign_file(path)
            if self._tried.get(key) == signature and (known or key in self._refused):
                return known
            self._tried[key] = signature
            model = load_model(path, name=name, version=str(version), **self._load_options)
        except (UsageError, OSError) as error:
            if str(self._refused.get(key)) != str(error):
                log.error("%s/%s is not served: %s", name, version, error)
            self._refused[key] = error
            return known
        self._refused.pop(key, None)
        log.info("loaded %s/%s on %s, %s", name, version, model.provider, model.digest)
        if model.manifest.certificate is None:
            log.warning("%s/%s has no certificate: nobody vouches for its answers", name, version)
        elif not model.batch_invariant and model.max_batch == 1:
            log.warning("%s/%s answers otherwise in a batch: it runs one image at a time", name, version)
        return model

    def _serve(self, name: str, versions: tuple[Model, ...]) -> None:
        """Swap what is loaded of a model; () serves it no longer."""
        before = self._loaded.get(name, ())
        if versions == before:
            return
        self._loaded = {**self._loaded, name: versions}
        if not versions:
            self._loaded = {other: models for other, models in self._loaded.items() if other != name}
        if versions[:1] != before[:1]:
            log.info("%s is served in version %s", name, versions[0].version if versions else "none")

    def _explain(self, name: str, version: int, ready: list[int]) -> str:
        """Why a version is not loaded, or what is wrong although it is."""
        if self._unloaded & {(name, version), (name, ALL)}:
            return "unloaded by a call"
        if error := self._refused.get((name, version)):
            return str(error)
        if version in ready:
            return "no longer in the repository" if name in self._lost else ""
        if name in self._pinned:
            return f"version {self._pinned[name]} is pinned"
        return f"version {ready[0]} is served" if ready else "not loaded"
