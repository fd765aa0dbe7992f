"""Export a run and publish the artifact in a model repository."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from evalmode.artifact.publishing import check_publishable
from evalmode.artifact.sealing import digest_file, state_credits
from evalmode.certification.metrics import Quality
from evalmode.deployment.layouts import LaidOut, publish_everywhere
from evalmode.deployment.targets import Target, read_targets
from training.agreement import Agreement
from training.callbacks import Callbacks
from training.export import export_run, quantize_artifact
from training.loading import reload_data
from training.options import ExportOptions
from training.run import REPORT, Run


@dataclass(frozen=True)
class PublishedFile:
    """A file in a model repository.

    Attributes:
        name: Name of the model.
        version: Version of the model, a decimal number.
        path: Path of ``model.onnx``.
        digest: Digest of the file, ``sha256:...``.
        size_bytes: Size of the file in bytes.
        layouts: The layouts of other tools that it was written in.
    """

    name: str
    version: str
    path: Path
    digest: str
    size_bytes: int
    layouts: tuple[LaidOut, ...]


@dataclass(frozen=True)
class Variant(PublishedFile):
    """A quantized variant of an artifact.

    Attributes:
        kind: ``int8``.
        gain: Speed and accuracy relative to the artifact, in words.
    """

    kind: str
    gain: str


@dataclass(frozen=True)
class Artifact(PublishedFile):
    """A published artifact.

    Attributes:
        agreement: How well ONNX Runtime agrees with torch on the test images.
        quality: Accuracy and calibration on the test images.
        temperature_reason: Why its temperature was chosen, in words.
        variants: Quantized variants that were published with it.
    """

    agreement: Agreement
    quality: Quality
    temperature_reason: str
    variants: tuple[Variant, ...] = ()


def export_and_publish(
    run: Run | Path, repository: Path, name: str, options: ExportOptions, callbacks: Callbacks
) -> Artifact:
    """Export a run and publish the artifact, and the quantized variant if one is requested.

    The repository is checked first: reading the run and its data takes longer.

    Args:
        run: A run with its best weights, or the path of its folder.
        repository: Folder of the model repository.
        name: Name of the model.
        options: How to export.
        callbacks: Functions to call with the progress.

    Returns:
        The published artifact.

    Raises:
        EvalmodeError: The run, the data or the repository cannot be used, or a check failed. If the check of the
            variant failed, the artifact itself is published.
    """
    kind = options.quantize
    for one in (name, f"{name}-{kind}") if kind else (name,):
        check_publishable(repository, one)
    targets = read_targets(options.also, repository)
    opened = run if isinstance(run, Run) else Run.open(run)
    dataset = reload_data(opened, options.data, options.cache, callbacks)
    is_private = options.golden == "synthetic"
    callbacks.on_export("exporting")
    exported = export_run(opened, dataset, options.mirrored, is_private)
    content = state_credits(exported.artifact, options.author, options.license)
    report = opened.folder / REPORT  # it shows images of the data
    publish = partial(_publish, repository, targets, report if report.is_file() and not is_private else None)
    artifact = Artifact(
        **publish(name, content),
        agreement=exported.agreement,
        quality=exported.quality,
        temperature_reason=exported.temperature_reason,
    )
    callbacks.on_published(artifact)
    if not kind:
        return artifact
    callbacks.on_export("quantizing")
    content, gain = quantize_artifact(content, dataset)
    variant = Variant(**publish(f"{name}-{kind}", content), kind=kind, gain=gain)
    callbacks.on_published(variant)
    return replace(artifact, variants=(variant,))


def _publish(
    repository: Path, targets: tuple[Target, ...], report: Path | None, name: str, content: bytes
) -> dict[str, Any]:
    """Publish a file; returns the fields of `PublishedFile`."""
    path, layouts = publish_everywhere(repository, name, content, targets, report)
    return {
        "name": name,
        "version": path.parent.name,
        "path": path,
        "digest": digest_file(content),
        "size_bytes": len(content),
        "layouts": layouts,
    }
