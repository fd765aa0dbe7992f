"""The models that are served now, by name: found by every request, following the folder that they come from."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalmode.artifact.repository import find_artifact, list_names, list_versions
from evalmode.artifact.strays import explain_missing, find_strays
from evalmode.errors import (
    ArtifactInvalid,
    DeadlineExpired,
    ModelInvalid,
    ModelNotFound,
    ModelUnspecified,
    TrialUnavailable,
    UsageError,
)
from evalmode.files import Signature, sign_file
from evalmode.limits import Limits
from evalmode.runtime.loading import LoadOptions, load_model
from evalmode.runtime.model import Model
from serving.trials import Trials

log = logging.getLogger(__name__)

ALL = 0  # in place of a version, where all of a model are meant
LOADERS = 2  # threads, each of which tries one version at a time
LOOK_S = 0.2  # between two looks at whether to stop, while waiting for what is on trial
KEEP = 2  # versions of a model that stay loaded: the one before the newest, to go back to
_Key = tuple[str, int]  # name and version


@dataclass(frozen=True)
class Entry:
    """A version in the model repository.

    Attributes:
        name: the model's.
        version: its number.
        state: READY, or UNAVAILABLE where it is not loaded.
        reason: why it is not.
        failed: whether it cannot be loaded, and no newer version is loaded in its place.
    """

    name: str
    version: str
    state: str
    reason: str
    failed: bool = False

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
        trials: where new versions are tried before they are loaded.
        follow_links: whether symbolic links may lead out of the repository.
        load_options: The fields of ``LoadOptions``, for all models that are loaded.
    """

    def __init__(
        self,
        loaded: Mapping[str, tuple[Model, ...]],
        repository: Path,
        pinned: Mapping[str, int] | None = None,
        keep: int = KEEP,
        trials: Trials | None = None,
        follow_links: bool = False,
        **load_options: Any,
    ) -> None:
        self._loaded = loaded
        self._repository = repository
        self._pinned = pinned or {}
        self._keep = keep
        self._trials = trials or Trials(Limits())
        self._follow_links = follow_links
        self._load_options = LoadOptions(**load_options)
        self._jobs: queue.SimpleQueue[_Key | None] = queue.SimpleQueue()
        self._changed = threading.Condition(
            threading.RLock()
        )  # guards what follows, and every change of what is loaded
        self._closed = False
        self._tried: dict[_Key, Signature] = {}  # the file of each version as it was when it was read
        self._on_trial: set[_Key] = set()
        self._arrived: dict[_Key, Model] = {}  # loaded, and not yet in its place among what is served
        self._refused: dict[_Key, Exception] = {}  # those that could not be loaded
        self._unloaded: set[_Key] = set()  # by a call
        self._lost: dict[str, str] = {}  # served although the repository has no version of them any more, and why
        self._strays: dict[str, str] = {}  # what looks like a version in the repository and is none, and why
        self._on_change: Callable[[list[Entry]], None] = lambda entries: None

    @classmethod
    def open(
        cls,
        repository: Path,
        pinned: Mapping[str, int] | None = None,
        keep: int = KEEP,
        stop: threading.Event | None = None,
        **options: Any,
    ) -> Models:
        """Load the newest version that can be served of every model of a repository.

        Args:
            repository: the folder.
            pinned: names that are served in one version, and which.
            keep: how many versions of a model stay loaded once they are followed.
            stop: once set, nothing more is loaded, and none need be.
            options: ``trials``, ``follow_links``, and the fields of ``LoadOptions``.

        Raises:
            ArtifactInvalid: it holds no model, or none that can be loaded.
            ProviderUnavailable: CUDA was asked for and does not work here.
        """
        models = cls({}, repository, pinned, 1, **options)  # those that are only kept can wait until this one answers
        names = list_names(repository)
        if not names:
            raise ArtifactInvalid(
                f"{explain_missing(repository)}: publish a model with 'evalmode export', or correct --repository"
            )
        for number in range(LOADERS):
            threading.Thread(target=models._work, name=f"loader {number}", daemon=True).start()
        models._look()
        models._wait_until(lambda: not models._on_trial, stop=stop)
        models._keep = keep
        if stop and stop.is_set():
            return models
        for name, version in models._pinned.items():
            models._find_artifact((name, version))
            if error := models._refused.get((name, version)):
                raise error
        if not models._loaded:
            raise next(iter(models._refused.values()))
        return models

    def close(self) -> None:
        """Load nothing more: what is on trial is killed, and whoever waits for it is refused. What is served stays."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._trials.close()
        for _ in range(LOADERS):
            self._jobs.put(None)

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
                wanted = version >= max(ready, default=0) and not self._unloaded & {(name, version), (name, ALL)}
                failed = wanted and (name, version) in self._refused
                entries.append(Entry(name, str(version), state, self._explain(name, version, ready), failed))
        return entries

    def follow(self, on_change: Callable[[list[Entry]], None]) -> None:
        """Tell what there is: now, and whenever it changes."""
        with self._changed:
            self._on_change = on_change
            on_change(self.list_entries())

    def watch(self, poll_s: float, stop: threading.Event) -> None:
        """Look every ``poll_s`` seconds what the repository holds, until told to stop; then load nothing more.

        What is new is loaded by other threads: this one waits for nothing but its next look.
        """
        while not stop.wait(poll_s):
            try:
                self._look()
            except Exception:  # of the file system, say: what is served goes on
                log.exception("the repository cannot be followed, what is loaded is served on")
        self.close()

    def refresh(self) -> None:
        """Load what is new in the repository, serve it, and forget what is gone; return once that is done."""
        self._look()
        self._wait_until(lambda: not self._on_trial)

    def load(self, name: str, timeout_s: float | None = None) -> None:
        """Serve the newest version in the repository; what is served so far goes on until that one is ready.

        Args:
            name: of the model.
            timeout_s: seconds to wait for it; it is loaded even if that takes longer.

        Raises:
            ModelNotFound: the repository has no such model.
            ModelInvalid: its newest version cannot be loaded.
            DeadlineExpired: that is not known yet.
        """
        with self._changed:
            newest = self._pinned.get(name) or max(list_versions(self._repository, name), default=0)
            if not newest:
                why = explain_missing(self._repository, name)
                raise ModelNotFound(f"model {name!r} is not found in the repository: {why}", model=name)
            key = (name, newest)
            self._unloaded = {entry for entry in self._unloaded if entry[0] != name}
            if key not in self._on_trial:
                self._tried.pop(key, None)  # whoever asks wants it read again
            self._advance(name)
            self._on_change(self.list_entries())
            if not self._wait_until(lambda: key not in self._on_trial, timeout_s):
                raise DeadlineExpired(
                    f"{name}/{newest} is still being checked and replayed: ask RepositoryIndex for it"
                )
            if self._closed:
                raise ModelInvalid(f"{name}/{newest} is not loaded: the server is shutting down", model=name)
            if error := self._refused.get(key):
                raise ModelInvalid(f"{name}/{newest} cannot be loaded: {error}", model=name, version=newest) from error

    def unload(self, name: str, version: str = "") -> None:
        """Serve a model, or one version of it, no longer until it is loaded again; requests that found it are answered.

        Raises:
            ModelNotFound: it is not served.
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

    def _look(self) -> None:
        """See what the repository holds, and start to load what is new."""
        with self._changed:
            before = self.list_entries()
            for name in sorted({*self._loaded, *list_names(self._repository)}):
                self._advance(name)
            strays = find_strays(self._repository)
            for path, why in sorted(strays.items() - self._strays.items()):
                log.warning("%s %s", path, why)
            self._strays = strays
            if (after := self.list_entries()) != before:
                self._on_change(after)

    def _wait_until(
        self, holds: Callable[[], bool], timeout_s: float | None = None, stop: threading.Event | None = None
    ) -> bool:
        """Wait for a change of what is loaded; return at once when closed or told to stop.

        Returns:
            False: the time was over before.
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
        """Hold the newest versions of a model that can be loaded; start to load the newest of which that is not known.

        Older ones wait for it: they may not be wanted then. What is served is served on meanwhile.
        """
        versions = sorted(list_versions(self._repository, name), reverse=True)
        if not versions and name in self._loaded:
            why = explain_missing(self._repository, name)
            if self._lost.get(name) != why:
                log.warning("%s has no version in the repository any more, but is served on: %s", name, why)
            self._lost[name] = why
            return
        self._lost.pop(name, None)
        if name in self._pinned:
            versions = [self._pinned[name]]
        for known in (self._tried, self._refused, self._arrived):
            for one, version in [*known]:
                if one == name and version not in versions:
                    known.pop((name, version))
        before = self._loaded.get(name, ())
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
        if chosen:
            self._serve(name, chosen)

    def _is_new(self, key: _Key, model: Model | None) -> bool:
        """Whether the file of a version is to be read: it was not yet, or it has changed since."""
        if key in self._on_trial:
            return False
        try:
            signature = sign_file(self._find_artifact(key))
        except (UsageError, OSError) as error:
            self._refuse(key, error)
            return False
        if self._tried.get(key) == signature and (model or key in self._refused):
            return False
        self._tried[key] = signature
        return True

    def _work(self) -> None:
        """Load one version after the other, until closed."""
        while key := self._jobs.get():
            try:
                self._load(key)
            except Exception:  # of the file system, say: what is served goes on
                log.exception("the repository cannot be followed, what is loaded is served on")

    def _load(self, key: _Key) -> None:
        """Try a version, load it, and serve it if it is still wanted."""
        name, version = key
        try:
            path = self._find_artifact(key)
            model = load_model(path, name=name, version=str(version), examine=self._examine, options=self._load_options)
            error: Exception | None = None
        except Exception as caught:  # whatever it is: it must not end the thread, nor hold up the other versions
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
                _log_loaded(model)
            self._advance(name)
            if isinstance(error, TrialUnavailable):  # which says nothing of the file: the next look tries again
                self._tried.pop(key, None)
            self._on_change(self.list_entries())
            if not self._on_trial:
                self._trials.rest()
            self._changed.notify_all()

    def _find_artifact(self, key: _Key) -> Path:
        return find_artifact(self._repository, *key, self._follow_links)

    def _examine(self, artifact: bytes) -> None:
        self._trials.examine(artifact, self._load_options.allow_uncertified)

    def _refuse(self, key: _Key, error: Exception) -> None:
        if str(self._refused.get(key)) != str(error):
            log.error("%s/%s is not served: %s", *key, error)
        self._refused[key] = error

    def _serve(self, name: str, versions: tuple[Model, ...]) -> None:
        """Swap what is loaded of a model; () serves it no longer."""
        before = self._loaded.get(name, ())
        if versions == before:
            return
        self._loaded = dict(sorted({**self._loaded, name: versions}.items()))
        if not versions:
            self._loaded = {other: models for other, models in self._loaded.items() if other != name}
        if versions[:1] != before[:1]:
            log.info("%s is served in version %s", name, versions[0].version if versions else "none")

    def _explain(self, name: str, version: int, ready: list[int]) -> str:
        """Why a version is not loaded, or what is wrong although it is."""
        if self._unloaded & {(name, version), (name, ALL)}:
            return "unloaded by a call"
        if (name, version) in self._on_trial and version not in ready:
            return "being checked and replayed"
        if error := self._refused.get((name, version)):
            return str(error)
        if version in ready:
            return "no longer in the repository" if name in self._lost else ""
        if name in self._pinned:
            return f"version {self._pinned[name]} is pinned"
        return f"version {ready[0]} is served" if ready else "not loaded"


def _log_loaded(model: Model) -> None:
    log.info("loaded %s/%s on %s, %s", model.name, model.version, model.provider, model.digest)
    if model.manifest.certificate is None:
        log.warning("%s/%s has no certificate: nobody vouches for its answers", model.name, model.version)
    elif not model.batch_invariant and model.max_batch == 1:
        log.warning("%s/%s answers otherwise in a batch: it runs one image at a time", model.name, model.version)
