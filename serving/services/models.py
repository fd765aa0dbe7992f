"""The models that are served now, by name: found by every request, changed by repository control."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ModelInvalid, ModelNotFound, ModelUnspecified, UsageError
from serving.model import Model, load_model
from serving.repository import artifact_path, list_models, list_versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A version in the model repository.

    Attributes:
        name: the model's.
        version: its number.
        state: READY, or UNAVAILABLE where it is not served.
        reason: why it is not.
    """

    name: str
    version: str
    state: str
    reason: str


class Models:
    """Models by name, and the repository that they are loaded from.

    Args:
        served: the first of them, by name.
        repository: the folder.
        load_options: of ``load_artifact``, for those to come.
    """

    def __init__(self, served: Mapping[str, Model], repository: Path, **load_options: Any) -> None:
        self._served = served
        self._repository = repository
        self._load_options = load_options
        self._changing = threading.Lock()

    @classmethod
    def open(cls, repository: Path, **load_options: Any) -> Models:
        """Load the newest version of every model of a repository.

        Raises:
            ArtifactInvalid: it holds no model, or one that cannot be loaded.
        """
        models = cls({}, repository, **load_options)
        models._served = {name: models._open(name, version) for name, version in list_models(repository).items()}
        return models

    @property
    def served(self) -> Mapping[str, Model]:
        """What is served at this moment, by name; never changed in place."""
        return self._served

    def find(self, name: str, version: str, field: str = "model") -> Model:
        """The model a request asks for.

        Args:
            name: its name; "" where one model is served.
            version: its version, "" for whichever is served.
            field: of the request that the name stands in.

        Raises:
            ModelUnspecified, ModelNotFound: none is told, or there is no such model.
        """
        served = self._served
        model = served.get(name or next(iter(served), ""))
        if model is not None and version in ("", model.version) and (name or len(served) == 1):
            return model
        known = ", ".join(f"{model.name}/{model.version}" for model in served.values()) or "none"
        if not name and len(served) > 1:
            raise ModelUnspecified(f"several models are served, name one of {known}", field=field, served=known)
        wanted = f"{name or next(iter(served), '')}{'/' if version else ''}{version}"
        raise ModelNotFound(
            f"Request for unknown model: {wanted!r} is not found, served: {known}", model=wanted, served=known
        )

    def list_entries(self) -> Iterator[Entry]:
        """Every version in the repository, or served although it is no longer there."""
        served = self._served
        for name in sorted({*served, *(path.name for path in self._repository.glob("*"))}):
            current = served[name].version if name in served else ""
            versions = {*map(str, list_versions(self._repository, name)), current} - {""}
            for version in sorted(versions, key=int):
                reason = f"version {current} is served" if current else "not loaded"
                yield Entry(name, version, *(("READY", "") if version == current else ("UNAVAILABLE", reason)))

    def load(self, name: str) -> None:
        """Serve the newest version in the repository; what is served so far goes on until that one is ready.

        Raises:
            ModelNotFound: the repository has no such model.
            ModelInvalid: its newest version cannot be loaded.
        """
        with self._changing:
            newest = max(list_versions(self._repository, name), default=0)
            if not newest:
                raise ModelNotFound(f"model {name!r} is not found in the repository", model=name)
            try:
                model = self._open(name, newest)
            except UsageError as error:  # ProviderUnavailable, too
                raise ModelInvalid(f"{name}/{newest} cannot be loaded: {error}", model=name, version=newest) from error
            self._served = {**self._served, name: model}
        log.info("loaded %s/%s, %s", name, newest, model.digest)

    def unload(self, name: str) -> None:
        """Serve a model no longer; requests that have found it are answered.

        Raises:
            ModelNotFound: it is not served.
        """
        with self._changing:
            if name not in self._served:
                raise ModelNotFound(f"model {name!r} is not found, so it cannot be unloaded", model=name)
            self._served = {other: model for other, model in self._served.items() if other != name}
        log.info("unloaded %s", name)

    def _open(self, name: str, version: int) -> Model:
        path = artifact_path(self._repository, name, version)
        return load_model(path, name=name, version=str(version), **self._load_options)
