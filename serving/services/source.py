"""Where models come from: the layout of a repository, and how one version of a model is checked and loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalmode.artifact.recognition import recognise
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
        tolerance: The tolerance of the certificate, which bounds what batches change; 0 without a certificate.
    """

    name: str
    version: str
    provider: str
    digest: str
    certified: bool
    batch_invariant: bool
    max_batch: int
    tolerance: float = 0.0

    @classmethod
    def of(cls, model: Model) -> Facts:
        """The facts of a loaded model."""
        certificate = model.manifest.certificate
        limits = (model.batch_invariant, model.max_batch, certificate.tolerance if certificate else 0.0)
        return cls(model.name, model.version, model.provider.name, model.digest, certificate is not None, *limits)


def log_loaded(facts: Facts) -> None:
    """Log that a version was loaded, and what limits it."""
    name = f"{facts.name}/{facts.version}"
    log.info("loaded %s on %s, %s", name, facts.provider, facts.digest)
    if not facts.certified:
        log.warning("%s has no certificate: its answers are not verified", name)
    elif not facts.batch_invariant and facts.max_batch == 1:
        log.warning(
            "%s rounds differently in a batch than alone, within the tolerance %.0e of its certificate: it runs one "
            "image at a time, which keeps every bit and costs throughput; evalmode check shows the difference",
            name,
            facts.tolerance,
        )


class Source:
    """The models of a repository, and how their versions are loaded. Methods may be called from several threads.

    Args:
        repository: The folder or the file, see ``recognise``.
        pinned: The models that are served in one fixed version, by name, with that version.
        trials: The child processes that check a version before it is loaded. Default: with the default limits.
        model_name: The name of the only model; "" if its folder or file names it, or if there are several.
        follow_links: Folders outside the repository that symbolic links may lead into.
        load_options: The fields of ``LoadOptions``.

    Attributes:
        layout: The models, versions and files of the repository.
        pinned: The models that are served in one fixed version, by name, with that version.
        trials: The child processes that check a version before it is loaded.
    """

    def __init__(
        self,
        repository: Path,
        pinned: Mapping[str, int] | None = None,
        trials: Trials | None = None,
        model_name: str = "",
        follow_links: Sequence[str] = (),
        **load_options: Any,
    ) -> None:
        self.layout = recognise(repository, model_name, follow_links)
        self.pinned = pinned or {}
        self.trials = trials or Trials(Limits())
        self._load_options = load_options

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
        path, options = self.layout.find_artifact(*key), LoadOptions(**self._load_options)
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
