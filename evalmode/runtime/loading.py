"""Loading artifacts: opening them in a session, and replaying their certificates."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.parts import split_graph
from evalmode.artifact.sealing import digest_file, open_artifact
from evalmode.errors import ArtifactInvalid, ProviderUnavailable, Uncertified
from evalmode.limits import LARGEST_BATCH
from evalmode.runtime.model import ImageClassifier, Model, TensorNetwork
from evalmode.runtime.optional_outputs import NO_OUTPUTS, open_optional
from evalmode.runtime.provider import open_session
from evalmode.runtime.session import limit_runs, open_cpu_session, shrink_arena
from evalmode.runtime.threads import add_lone

log = logging.getLogger(__name__)

MAX_ARTIFACT_BYTES = 2**31 - 1  # protobuf's own limit


@dataclass(frozen=True)
class LoadOptions:
    """How artifacts are loaded.

    Attributes:
        provider: "cpu", "cuda", or "auto" for CUDA if it is available, else the CPU.
        threads: Threads that one inference may use; 0 for as many as there are cores.
        allow_uncertified: Whether artifacts without a certificate are loaded. They run one input at a time.
        arena: Whether memory is kept between runs on the CPU: faster, but takes up to twice as much address space.
        replay_s: Seconds that the replay of the certificate may take; 0 for no limit.
        lone_threads: Threads of a second session, for requests that are alone; up to 1 for no such session.
    """

    provider: str = "cpu"
    threads: int = 1
    allow_uncertified: bool = False
    arena: bool = True
    replay_s: float = 0.0
    lone_threads: int = 0


DEFAULT_OPTIONS = LoadOptions()


def load_model(
    path: str | PathLike[str],
    *,
    name: str = "",
    version: str = "",
    examine: Callable[[bytes], object] = lambda artifact: None,
    options: LoadOptions = DEFAULT_OPTIONS,
) -> Model:
    """Load an artifact from a file, see ``load_artifact``.

    Args:
        path: The file.
        name: The model's name; by default the stem of the file.
        version: The model's version in its repository.
        examine: Called with the bytes of the file before they are loaded; an exception refuses the file.
        options: How the artifact is loaded.

    Raises:
        ArtifactInvalid: The file cannot be read, or ``load_artifact`` or ``examine`` refuses it; the message names it.
        ProviderUnavailable: The requested execution provider is not available.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > MAX_ARTIFACT_BYTES:
            raise ArtifactInvalid(f"{size} bytes, protobuf reads at most {MAX_ARTIFACT_BYTES}", size_bytes=size)
        artifact = path.read_bytes()
        examine(artifact)
        return load_artifact(artifact, name=name or path.stem, version=version, options=options)
    except ProviderUnavailable:
        raise
    except (ArtifactInvalid, OSError) as error:
        kind, facts = (type(error), error.facts) if isinstance(error, ArtifactInvalid) else (ArtifactInvalid, {})
        raise kind(f"{path}: {error}", **facts) from error


def load_artifact(
    artifact: bytes, *, name: str = "", version: str = "", options: LoadOptions = DEFAULT_OPTIONS
) -> Model:
    """Load an artifact, and verify that it is unchanged and still gives the answers that were certified.

    Args:
        artifact: The bytes of a ``model.onnx``.
        name: The model's name.
        version: The model's version in its repository.
        options: How the artifact is loaded.

    Returns:
        An ``ImageClassifier`` or a ``TensorNetwork``.

    Raises:
        ArtifactInvalid: The file is damaged, is not an artifact, has changed, is uncertified, or gives other answers
            than its certificate.
        ProviderUnavailable: The requested execution provider is not available.
    """
    graph, manifest = open_artifact(artifact)
    if manifest.certificate is None and not options.allow_uncertified:
        raise Uncertified("it has no certificate: certify it with 'evalmode certify', or use --allow-uncertified")
    try:
        parts = split_graph(graph, manifest.optional_outputs) if manifest.optional_outputs else None
        first = parts.write_first() if parts else artifact
        session, provider = open_session(first, options.provider, options.threads, options.arena)
        optional = (
            open_optional(parts, session, partial(open_cpu_session, arena=options.arena)) if parts else NO_OUTPUTS
        )
        facts = (provider, False, 1, session, optional)
        digest = digest_file(artifact)
        model: Model
        if isinstance(manifest, ClassifierManifest):
            model = ImageClassifier(name, version, digest, manifest, *facts)
        else:
            model = TensorNetwork(name, version, digest, manifest, *facts)
        if not (model.inputs and model.outputs):  # this also checks their types, before the first request
            raise ArtifactInvalid("it has no inputs or no outputs")
        replayed = replay(model, options.replay_s)
        if options.arena and provider.is_reference and manifest.certificate:
            # Otherwise the memory of the largest batch stays: 620 MiB for EfficientNet-Lite0, which needs 160 in all.
            model.run({name: array[:1] for name, array in manifest.certificate.inputs.items()}, options=shrink_arena())
        return _add_lone(replayed, first, options)
    except (ProviderUnavailable, ArtifactInvalid):
        raise
    except Exception as error:  # onnxruntime's own exceptions have no common base class
        raise ArtifactInvalid(f"not a model that onnxruntime can load: {error}") from error


def _add_lone(model: Model, graph: bytes, options: LoadOptions) -> Model:
    """Add a second session for requests that are alone; without it the model is served all the same."""
    try:
        return add_lone(model, graph, options.lone_threads, options.replay_s)
    except Exception as error:  # onnxruntime's own exceptions have no common base class
        log.warning("%r: every request gets one thread, since a second session failed: %s", model, error)
        return model


def replay(model: Model, replay_s: float = 0.0) -> Model:
    """Replay the certificate of a model, which also warms the session. Without one, only check the outputs.

    Optional outputs are computed, too, and compared if the certificate has them.

    Args:
        model: The model, loaded.
        replay_s: Seconds that this may take; 0 for no limit.

    Returns:
        The model, with ``batch_invariant`` and ``max_batch`` as found.

    Raises:
        ArtifactInvalid: The outputs differ from those of the certificate, or do not match the labels.
        LoadLimitExceeded: It takes more than ``replay_s`` seconds.
    """
    manifest, provider = model.manifest, model.provider
    manifest.check_surroundings()
    with limit_runs(replay_s) as run_options:
        run = partial(model.run, optional=model.optional.names, options=run_options)
        certificate = manifest.certificate
        if certificate is None:
            manifest.check_outputs(run)
            return model
        tolerance = certificate.tolerance
        if not provider.is_reference:  # another order of summation
            tolerance = max(tolerance, certificate.largest_tolerance)
        same = certificate.replay(run, tolerance, provider.replay_sizes)
    invariant = certificate.batch_invariant and same
    max_batch = LARGEST_BATCH if invariant or not provider.is_reference else 1
    return replace(model, batch_invariant=invariant, max_batch=max_batch)
