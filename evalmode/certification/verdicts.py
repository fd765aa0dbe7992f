"""Every check there is on one file, each with its verdict: what ``evalmode check`` shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from evalmode.artifact.certificate import LARGEST_TOLERANCE, Certificate
from evalmode.artifact.manifest import ClassifierManifest, Manifest, read_manifest
from evalmode.artifact.sealing import check_digest, check_operators, digest_file
from evalmode.artifact.tensors import Run, Tensors
from evalmode.certification.certify import draw_golden, least_recalls
from evalmode.certification.checks import (
    check_batches,
    check_eval_mode,
    check_finite,
    check_golden,
    check_outputs,
    check_repeats,
    open_runs,
)
from evalmode.errors import ArtifactInvalid, EvalmodeError
from evalmode.limits import LARGEST_BATCH
from evalmode.runtime.session import open_cpu_session

DRAWN = 16  # inputs for a file that holds no images


@dataclass(frozen=True)
class Verdict:
    """What one check found.

    Attributes:
        check: what was looked at.
        passed: None: it cannot be told of this file.
        told: what was found, or why it cannot be told.
        reason: the error's name where it did not pass.
    """

    check: str
    passed: bool | None
    told: str
    reason: str = ""


def examine(artifact: bytes) -> list[Verdict]:
    """Run every check on a file, any ONNX classifier of images, and go on after those that do not pass."""
    try:
        graph = onnx.load_model_from_string(artifact)
    except Exception as error:  # protobuf's decoder raises types of its own
        return [Verdict("file", False, f"not an ONNX file, or a damaged one: {error}", "ArtifactInvalid")]
    verdicts = [Verdict("file", True, f"{digest_file(artifact)}, {len(artifact):,} bytes, {_list_opsets(graph)}")]
    verdicts.append(_judge("operators", lambda: check_operators(graph)))
    whole = bool(verdicts[-1].passed)  # else there is nothing to look at, or nothing that may run
    if whole:
        verdicts.append(_judge("eval mode", lambda: check_eval_mode(graph)))
        verdicts.append(_judge("weights", lambda: check_finite(graph)))
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    if not any(key.startswith("evalmode.") for key in metadata):
        verdicts.append(Verdict("certificate", None, "none: evalmode certify gives it one"))
        return verdicts + (_examine_foreign(artifact) if whole else [])
    verdicts.append(_judge("digest", lambda: _check_seal(artifact)))
    verdicts.append(_judge("metadata", lambda: f"{len(read_manifest(metadata).labels)} labels"))
    if whole and verdicts[-1].passed:
        verdicts += _examine_ours(artifact, read_manifest(metadata))
    return verdicts


def _judge(check: str, look: Callable[[], str]) -> Verdict:
    try:
        return Verdict(check, True, look())
    except EvalmodeError as error:
        return Verdict(check, False, str(error), type(error).__name__)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        return Verdict(check, False, f"onnxruntime cannot run it: {error}", "ArtifactInvalid")


def _check_seal(artifact: bytes) -> str:
    check_digest(artifact)
    return "unchanged since it was sealed"


def _list_opsets(graph: onnx.ModelProto) -> str:
    return "opset " + ", ".join(f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in graph.opset_import)


def _examine_ours(artifact: bytes, manifest: Manifest) -> list[Verdict]:
    """What running shows of an artifact, and what its certificate says."""
    certificate = manifest.certificate
    drawn = {name: draw_golden(contract, DRAWN) for name, contract in manifest.image_inputs.items()}
    inputs = certificate.inputs if certificate else drawn
    verdicts = []
    if inputs:
        verdicts += list(_examine_runs(artifact, inputs, len(manifest.labels), manifest.relative_tolerance))
    if certificate is None:
        return [*verdicts, Verdict("certificate", False, "none: nobody vouches for its answers", "Uncertified")]
    if isinstance(manifest, ClassifierManifest):
        verdicts.append(_judge("decoder", lambda: _check_decoder(manifest)))
    verdicts.append(_judge("replay", lambda: _replay(artifact, certificate)))
    if isinstance(manifest, ClassifierManifest):
        verdicts.append(_judge("labels", lambda: _check_labels(manifest)))
    return verdicts


def _examine_foreign(artifact: bytes) -> list[Verdict]:
    """What running shows of somebody else's file, on drawn inputs."""
    try:
        session = open_cpu_session(artifact)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        return [Verdict("runs", False, f"onnxruntime cannot load it: {error}", "ArtifactInvalid")]
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in ("tensor(float)", "tensor(uint8)") or len(inputs[0].shape) != 4:
        wanted = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        return [Verdict("runs", None, f"it takes {wanted}, not one batch of images")]
    batch, *sides = inputs[0].shape
    if not all(isinstance(side, int) for side in sides) or isinstance(batch, int):
        return [Verdict("runs", None, f"its input is {inputs[0].shape}: only sizes fixed and batch free can be drawn")]
    rng, draw = np.random.default_rng(0), (DRAWN, *sides)
    drawn = rng.uniform(-1, 1, draw).astype(np.float32)
    if inputs[0].type == "tensor(uint8)":
        drawn = rng.integers(0, 256, draw).astype(np.uint8)
    return list(_examine_runs(artifact, {inputs[0].name: drawn}, None, relative=False))


def _examine_runs(artifact: bytes, inputs: Tensors, labels: int | None, relative: bool) -> Iterator[Verdict]:
    try:
        runs = open_runs(artifact)
    except ArtifactInvalid as error:
        yield Verdict("runs", False, str(error), "ArtifactInvalid")
        return
    if labels is not None:
        yield _judge("outputs", lambda: check_outputs(runs[0], inputs, labels))
    yield _judge("repeats", lambda: check_repeats(runs[0], inputs))
    yield _judge("batches", lambda: _tell_batches(runs, inputs, relative))


def _tell_batches(runs: list[Run], inputs: Tensors, relative: bool) -> str:
    same, largest = check_batches(runs, inputs, LARGEST_TOLERANCE, relative)
    equal = "the same bits" if same else f"answers within {largest:.1e}: it is served one image at a time"
    return f"at every place in batches of 1 to {LARGEST_BATCH}, on 1 and 2 threads, {equal}"


def _check_labels(manifest: ClassifierManifest) -> str:
    assert manifest.certificate is not None
    manifest.certificate.check_labels(manifest.labels)
    return check_golden(manifest.certificate, manifest.labels, least_recalls(manifest))


def _check_decoder(manifest: ClassifierManifest) -> str:
    assert manifest.certificate is not None
    manifest.certificate.check_decoder(manifest.pixels)
    return f"{len(manifest.certificate.encoded)} files become the pixels they were"


def _replay(artifact: bytes, certificate: Certificate) -> str:
    certificate.replay(open_runs(artifact)[0], certificate.tolerance, [LARGEST_BATCH])
    return f"{certificate.golden_count} golden inputs, alone and in a batch, within {certificate.tolerance:.0e}"
