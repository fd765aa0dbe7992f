"""The models of a repository: new versions are checked and loaded while the old ones answer."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalmode.errors import (
    ArtifactInvalid,
    DeadlineExpired,
    ModelInvalid,
    ModelNotFound,
    TrialUnavailable,
    UsageError,
)
from serving.services.loaded import Entry, LoadedModels
from serving.services.source import Key, Source
from serving.threads import start_threads
from serving.watching import WatchedFiles

if TYPE_CHECKING:
    from evalmode.runtime.model import Model

log = logging.getLogger(__name__)

ALL = 0  # stands for all versions of a model
LOADERS = 2  # threads, each of which loads one version at a time
LOOK_S = 0.2  # between two checks whether to stop, while waiting for versions that are being loaded
KEEP = 2  # versions of a model that stay loaded: the newest, and the one before it to roll back to


class Models(LoadedModels):
    """The models of a repository, kept up to date with it.

    Args:
        loaded: The loaded versions of each model by name, the newest first.
        source: The repository from which versions are loaded.
        keep: How many versions of a model stay loaded, at least 1.
    """

    def __init__(self, loaded: Mapping[str, tuple[Model, ...]], source: Source, keep: int = KEEP) -> None:
        super().__init__(loaded)
        self._source = source
        self._keep = keep
        self._jobs: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        # ``_changed`` guards the attributes below, too.
        self._closed = False
        self._tried: dict[Key, WatchedFiles] = {}  # the file of each version that was read
        self._on_trial: set[Key] = set()  # being checked and loaded, or waiting for it
        self._refused: dict[Key, Exception] = {}  # cannot be loaded
        self._quarantined: tuple[Model, ...] = ()  # loaded until another version can answer in their place
        self._unloaded: set[Key] = set()  # by a call
        self._lost: dict[str, str] = {}  # models that are still loaded but no longer in the repository, with the reason
        self._strays: dict[str, str] = {}  # paths that look like versions but are none, with the reason

    @classmethod
    def open(
        cls,
        repository: Path,
        pinned: Mapping[str, int] | None = None,
        keep: int = KEEP,
        stop: threading.Event | None = None,
        **options: Any,
    ) -> Models:
        """Load the newest valid version of every model in a repository.

        Args:
            repository: The folder or the file, see ``evalmode.artifact.recognition.recognise``.
            pinned: The models that are served in one fixed version, by name, with that version.
            keep: How many versions of a model stay loaded, at least 1. Older ones are loaded after this method returns.
            stop: Ends the loading once it is set. The result may hold no model then.
            options: See ``Source``.

        Raises:
            ArtifactInvalid: The repository holds no model, or none can be loaded, or a pinned version cannot.
            NameInvalid: A pinned name cannot be that of a model.
            ProviderUnavailable: The execution provider is not available.
            ThreadsUnavailable: The system cannot start the threads that load versions.
            UsageError: The options do not fit the layout, see ``recognise``.
        """
        return cls.open_source(Source(repository, pinned, **options), keep, stop)

    @classmethod
    def open_source(cls, source: Source, keep: int = KEEP, stop: threading.Event | None = None) -> Models:
        """Load the newest valid version of every model that a source has.

        Args:
            source: The repository, and how its versions are loaded.
            keep: How many versions of a model stay loaded, at least 1. Older ones are loaded after this method returns.
            stop: Ends the loading once it is set. The result may hold no model then.

        Raises:
            ArtifactInvalid: The repository holds no model, or none can be loaded, or a pinned version cannot.
            NameInvalid: A pinned name cannot be that of a model.
            ProviderUnavailable: The execution provider is not available.
            ThreadsUnavailable: The system cannot start the threads that load versions.
        """
        models = cls({}, source, 1)  # the newest version first; older ones can wait
        names = source.layout.list_names()
        if not names:
            raise ArtifactInvalid(
                f"{source.layout.explain_missing()}: publish a model with 'evalmode export', or correct --repository"
            )
        log.info(source.layout.describe())
        try:
            models._load_newest(stop)
        except BaseException:
            models.close()
            raise
        models._keep = keep
        return models

    def close(self) -> None:
        """Stop loading. Running trials are killed, and calls that wait for them fail. Loaded models keep answering."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._source.trials.close()
        for _ in range(LOADERS):
            self._jobs.put(None)

    @property
    def on_trial(self) -> frozenset[Key]:
        """The versions that are being checked and loaded, or wait for it."""
        return frozenset(self._on_trial)

    def list_entries(self) -> list[Entry]:
        """See ``LoadedModels``. Does not wait for versions that are being loaded."""
        loaded, entries = self._loaded, []
        for name in sorted({*loaded, *self._source.layout.list_names()}):
            ready = [int(model.version) for model in loaded.get(name, ()) if model.version]
            for version in sorted({*ready, *self._source.layout.list_versions(name)}):
                state = "READY" if version in ready else "UNAVAILABLE"
                wanted = version >= max(ready, default=0) and not self._unloaded & {(name, version), (name, ALL)}
                failed = wanted and (name, version) in self._refused
                entries.append(Entry(name, str(version), state, self._explain(name, version, ready), failed))
        return entries

    def watch(self, poll_s: float, stop: threading.Event) -> None:
        """Follow the repository until ``stop`` is set, then close. New versions are loaded by other threads.

        Args:
            poll_s: Seconds between two looks at the repository.
            stop: Ends this method.
        """
        while not stop.wait(poll_s):
            try:
                self._look()
            except Exception:  # such as an error of the file system
                log.exception("the repository cannot be followed; loaded models keep answering")
        self.close()

    def load(self, name: str, timeout_s: float | None = None) -> None:
        """Load the newest version in the repository. The previous version answers until the new one is ready.

        Args:
            name: The name of the model.
            timeout_s: Seconds to wait for it; None: no limit. The model is loaded even if that takes longer.

        Raises:
            ModelNotFound: The repository has no such model.
            ModelInvalid: Its newest version cannot be loaded.
            DeadlineExpired: The version is still being checked.
        """
        with self._changed:
            newest = self._source.pinned.get(name) or max(self._source.layout.list_versions(name), default=0)
            if not newest:
                why = self._source.layout.explain_missing(name)
                raise ModelNotFound(f"model {name!r} is not found in the repository: {why}", model=name)
            key = (name, newest)
            self._unloaded = {entry for entry in self._unloaded if entry[0] != name}
            if key not in self._on_trial:
                self._tried.pop(key, None)  # an explicit request reads the file again
            self._advance(name)
            self._on_change(self.list_entries())
            if not self._wait_until(lambda: key not in self._on_trial, timeout_s):
                raise DeadlineExpired(
                    f"{name}/{newest} is still being checked and replayed: RepositoryIndex reports its state"
                )
            if self._closed:
                raise ModelInvalid(f"{name}/{newest} is not loaded: the server is shutting down", model=name)
            if error := self._refused.get(key):
                raise ModelInvalid(f"{name}/{newest} cannot be loaded: {error}", model=name, version=newest) from error

    def unload(self, name: str, version: str = "") -> None:
        """Unload a model, or one version of it, until it is loaded again by a call.

        Args:
            name: The name of the model.
            version: The version, "" for all.

        Raises:
            ModelNotFound: The model is not loaded.
        """
        with self._changed:
            versions = self._loaded.get(name, ())
            left = tuple(model for model in versions if version not in ("", model.version))
            if left == versions:
                wanted = f"{name}/{version}" if version else name
                raise ModelNotFound(f"model {wanted!r} is not found, so it cannot be unloaded", model=wanted)
            self._unloaded.add((name, int(version or ALL)))
            self._serve(name, left)
            self._on_change(self.list_entries())

    def quarantine(self, key: Key, error: ArtifactInvalid) -> None:
        """Stop answering by a loaded version once another one can answer in its place.

        It is not loaded again until its file changes or a call loads it.

        Args:
            key: The name and the version.
            error: Why it cannot be used any more.
        """
        name, version = key
        with self._changed:
            for model in self._list_valid(name):
                if model.version == str(version):
                    self._quarantined += (model,)
                    self._refuse(key, error)
                    self._advance(name)
                    self._on_change(self.list_entries())

    def _load_newest(self, stop: threading.Event | None) -> None:
        """Start the threads, and wait until the newest version of every model is loaded or refused."""
        start_threads(LOADERS, "loader", self._work)
        self._look()
        self._wait_until(lambda: not self._on_trial, stop=stop)
        if stop and stop.is_set():
            return
        for key in self._source.pinned.items():
            self._source.layout.find_artifact(*key)
            if error := self._refused.get(key):
                raise error
        if not self._loaded:
            raise next(iter(self._refused.values()))

    def _look(self) -> None:
        """Compare the repository with the loaded models, and start to load new versions."""
        with self._changed:
            before = self.list_entries()
            for name in sorted({*self._loaded, *self._source.layout.list_names()}):
                self._advance(name)
            strays = self._source.layout.find_strays()
            for path, why in sorted(strays.items() - self._strays.items()):
                log.warning("%s %s", path, why)
            self._strays = strays
            if (after := self.list_entries()) != before:
                self._on_change(after)

    def _wait_until(
        self, holds: Callable[[], bool], timeout_s: float | None = None, stop: threading.Event | None = None
    ) -> bool:
        """Wait until a condition holds, or until the models are closed or ``stop`` is set.

        Returns:
            Whether that happened within ``timeout_s``.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not (holds() or self._closed or (stop and stop.is_set())):
                left = LOOK_S if until is None else min(LOOK_S, until - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _advance(self, name: str) -> None:
        """Keep the newest valid versions of a model loaded, and start to load the newest one that was not tried yet.

        Older versions wait for it, since they may not be needed then. The loaded versions answer meanwhile.
        """
        versions = sorted(self._source.layout.list_versions(name), reverse=True)
        if not versions and name in self._loaded:
            why = self._source.layout.explain_missing(name)
            if self._lost.get(name) != why:
                log.warning("%s is no longer in the repository, but stays loaded: %s", name, why)
            self._lost[name] = why
            return
        self._lost.pop(name, None)
        if name in self._source.pinned:
            versions = [self._source.pinned[name]]
        self._forget(name, versions)
        before = self._list_valid(name)
        chosen: tuple[Model, ...] = ()
        for version in versions:
            if len(chosen) == self._keep:
                break
            if self._unloaded & {(name, version), (name, ALL)}:
                continue
            key = (name, version)
            model = self._arrived.pop(key, None) or next((one for one in before if one.version == str(version)), None)
            if model and not chosen:
                self._serve(name, (model, *(one for one in before if one.version != model.version)))
            chosen += (model,) if model else ()
            if self._is_new(key, model) and not self._closed:
                self._on_trial.add(key)
                self._jobs.put(key)
            if key in self._on_trial:
                return
        for key in [key for key in self._arrived if key[0] == name]:  # newer versions have been loaded meanwhile
            del self._arrived[key]
        if chosen:
            self._serve(name, chosen)

    def _list_valid(self, name: str) -> tuple[Model, ...]:
        """The loaded versions of a model, without those in quarantine."""
        return tuple(one for one in self._loaded.get(name, ()) if not _is_among(one, self._quarantined))

    def _forget(self, name: str, versions: list[int]) -> None:
        """Drop what is recorded about other versions of a model."""
        for known in (self._tried, self._refused, self._arrived):
            for one, version in [*known]:
                if one == name and version not in versions:
                    known.pop((name, version))

    def _is_new(self, key: Key, model: Model | None) -> bool:
        """Whether the file of a version has to be read: it was not read yet, or it has changed since."""
        if key in self._on_trial:
            return False
        try:
            path = self._source.layout.find_artifact(*key)
        except (UsageError, OSError) as error:
            self._refuse(key, error)
            return False
        tried = self._tried.get(key)
        if tried and not tried.changed() and (model or key in self._refused):
            return False
        self._tried[key] = WatchedFiles(path)
        return True

    def _work(self) -> None:
        """Load one version after the other, until the models are closed."""
        while key := self._jobs.get():
            try:
                self._load(key)
            except Exception:  # such as an error of the file system
                log.exception("the repository cannot be followed; loaded models keep answering")

    def _load(self, key: Key) -> None:
        """Load a version, and let it answer requests if it is still needed."""
        name, _ = key
        log.info("checking %s/%s before it answers", *key)
        try:
            model = self._source.load(key)
            error: Exception | None = None
        except Exception as caught:  # no error may end the thread or keep other versions from being loaded
            error = caught
        with self._changed:
            self._on_trial.discard(key)
            if self._closed:
                return
            if error:
                self._refuse(key, error)
            else:
                self._refused.pop(key, None)
                self._arrived[key] = model
            self._advance(name)
            if isinstance(error, TrialUnavailable):  # the file may be valid: the next look tries again
                self._tried.pop(key, None)
            self._on_change(self.list_entries())
            if not self._on_trial:
                self._source.trials.rest()
            self._changed.notify_all()

    def _refuse(self, key: Key, error: Exception) -> None:
        if str(self._refused.get(key)) != str(error):
            answering = self._loaded.get(key[0], ())
            meanwhile = f"; {key[0]}/{answering[0].version} goes on answering" if answering else ""
            log.error("cannot load %s/%s: %s%s", *key, error, meanwhile)
        self._refused[key] = error

    def _serve(self, name: str, versions: tuple[Model, ...]) -> None:
        """Replace the loaded versions of a model; () unloads it."""
        before = self._loaded.get(name, ())
        if versions == before:
            return
        others = {other: models for other, models in self._loaded.items() if other != name}
        self._loaded = dict(sorted({**others, name: versions}.items())) if versions else others
        self._quarantined = tuple(one for one in self._quarantined if _is_among(one, self.loaded))
        if not versions:
            log.info("%s is no longer served", name)
        elif versions[:1] != before[:1]:
            log.info("%s is served in version %s", name, versions[0].version)

    def _explain(self, name: str, version: int, ready: list[int]) -> str:
        """Why a version is not loaded, or what is wrong although it is loaded."""
        if self._unloaded & {(name, version), (name, ALL)}:
            return "unloaded by a call"
        if (name, version) in self._on_trial and version not in ready:
            return "being checked and replayed"
        if error := self._refused.get((name, version)):
            return str(error)
        if version in ready:
            return "no longer in the repository" if name in self._lost else ""
        if name in self._source.pinned:
            return f"version {self._source.pinned[name]} is pinned"
        return f"version {ready[0]} is served" if ready else "not loaded"


def _is_among(model: Model, models: Iterable[Model]) -> bool:
    return any(model is one for one in models)
