"""The loaded models, by which requests are answered."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evalmode.errors import ModelNotFound, ModelUnspecified
from serving.services.source import Key

if TYPE_CHECKING:
    from evalmode.runtime.model import Model


@dataclass(frozen=True)
class Entry:
    """A version in the model repository.

    Attributes:
        name: The name of the model.
        version: The version number.
        state: "READY", or "UNAVAILABLE" if the version is not loaded.
        reason: Why it is not loaded, or what is wrong although it is; "" if nothing is.
        failed: Whether it cannot be loaded, and no newer version is loaded in its place.
    """

    name: str
    version: str
    state: str
    reason: str
    failed: bool = False

    @property
    def ready(self) -> bool:
        """Whether requests can name it."""
        return self.state == "READY"


class LoadedModels(ABC):
    """The loaded models by name.

    A request that names no version is answered by the newest one. A change affects later requests only: a request that
    has found its model is answered by it.

    Args:
        loaded: The loaded versions of each model by name, the newest first.
    """

    def __init__(self, loaded: Mapping[str, tuple[Model, ...]]) -> None:
        self._changed = threading.Condition(threading.RLock())  # guards every change of the attributes below
        self._loaded = loaded
        self._arrived: dict[Key, Model] = {}  # loaded, but not yet among those that answer requests
        self._on_change: Callable[[list[Entry]], None] = lambda entries: None

    @property
    def served(self) -> Mapping[str, Model]:
        """The newest loaded version of each model by name, which answers requests that name no version."""
        return {name: versions[0] for name, versions in self._loaded.items()}

    @property
    def loaded(self) -> tuple[Model, ...]:
        """All loaded versions of all models."""
        return tuple(model for versions in self._loaded.values() for model in versions)

    @property
    def arrived(self) -> tuple[Model, ...]:
        """The versions that are loaded and may answer later: newer ones are still being checked."""
        return tuple(self._arrived.values())

    def find(self, name: str, version: str, field: str = "model") -> Model:
        """Find the model that a request names.

        Args:
            name: The name of the model; "" is allowed if exactly one model is loaded.
            version: The version, "" for the newest.
            field: The request field that holds the name.

        Raises:
            ModelUnspecified: Several models are loaded and the request names none.
            ModelNotFound: No such model or version is loaded.
        """
        loaded = self._loaded
        if name or len(loaded) == 1:
            for model in loaded.get(name or next(iter(loaded)), ()):
                if version in ("", model.version):
                    return model
        known = ", ".join(f"{one.name}/{one.version}" for versions in loaded.values() for one in versions) or "none"
        if not name and len(loaded) > 1:
            raise ModelUnspecified(
                f"several models are served: name one of {', '.join(loaded)}", field=field, served=known
            )
        wanted = f"{name or next(iter(loaded), '')}{'/' if version else ''}{version}"
        hint = "; the version has a field of its own" if "/" in name else ""
        raise ModelNotFound(
            f"Request for unknown model: {wanted!r} is not found, served: {known}{hint}", model=wanted, served=known
        )

    def follow(self, on_change: Callable[[list[Entry]], None]) -> None:
        """Call a function with all entries, now and whenever they change."""
        with self._changed:
            self._on_change = on_change
            on_change(self.list_entries())

    @abstractmethod
    def list_entries(self) -> list[Entry]:
        """All versions that are in the repository or loaded."""

    @abstractmethod
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

    @abstractmethod
    def unload(self, name: str, version: str = "") -> None:
        """Unload a model, or one version of it, until it is loaded again by a call.

        Args:
            name: The name of the model.
            version: The version, "" for all.

        Raises:
            ModelNotFound: The model is not loaded.
        """
