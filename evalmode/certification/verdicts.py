"""Check a file: every check that applies to it, each with its verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx

from evalmode.artifact.manifest import ClassifierManifest, Manifest, read_manifest
from evalmode.artifact.repository import resolve_artifact
from evalmode.artifact.sealing import check_digest, digest_file
from evalmode.artifact.tensors import Run, Tensors
from evalmode.certification.certify import draw_golden
from evalmode.certification.checks import DECODER_CHECKS, GRAPH_CHECKS, LABEL_CHECKS, REPLAY_CHECKS, RUN_CHECKS
from evalmode.certification.golden import Claim, Replay
from evalmode.certification.runs import Probe, open_runs
from evalmode.errors import ArtifactInvalid, EvalmodeError
from evalmode.runtime.session import open_cpu_session

DRAWN = 16  # inputs drawn for a file that holds none
Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Verdict:
    """The result of one check.

    Attributes:
        check: The name of the check.
        passed: Whether it passed; None if the check does not apply to this file.
        finding: What was found, or why the check does not apply.
        reason: The name of the error if the check did not pass, else "".
    """

    check: str
    passed: bool | None
    finding: str
    reason: str = ""


def check_file(file: str | PathLike[str]) -> list[Verdict]:
    """Run every check that applies to an ONNX file, and continue after those that do not pass.

    Args:
        file: An artifact, or any other ONNX file; or a folder of a model repository, see ``resolve_artifact``.

    Returns:
        A verdict for each check, in the order in which they ran.

    Raises:
        OSError: The file cannot be read.
        UsageError: The folder holds no artifact.
    """
    return examine(resolve_artifact(Path(file)).path.read_bytes())


def examine(artifact: bytes) -> list[Verdict]:
    """Run every check that applies to an ONNX file, see ``check_file``.

    Args:
        artifact: The bytes of the file.

    Returns:
        A verdict for each check, in the order in which they ran.
    """
    try:
        graph = onnx.load_model_from_string(artifact)
    except Exception as error:  # protobuf's decoder raises types of its own
        return [Verdict("file", False, f"not an ONNX file, or a damaged one: {error}", "ArtifactInvalid")]
    verdicts = [Verdict("file", True, f"{digest_file(artifact)}, {len(artifact):,} bytes, {_list_opsets(graph)}")]
    operators, *others = GRAPH_CHECKS.items()
    verdicts.append(_judge(*operators, graph))
    runnable = bool(verdicts[-1].passed)  # otherwise the graph is incomplete, or must not run
    if runnable:
        verdicts += [_judge(*check, graph) for check in others]
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    if not any(key.startswith("evalmode.") for key in metadata):
        verdicts.append(Verdict("certificate", None, "none: evalmode certify adds one"))
        return verdicts + (_examine_foreign(artifact) if runnable else [])
    verdicts.append(_judge("digest", _check_seal, artifact))
    verdicts.append(_judge("metadata", _check_metadata, metadata))
    if runnable and verdicts[-1].passed:
        verdicts += _examine_artifact(artifact, read_manifest(metadata))
    return verdicts


def _judge(name: str, check: Callable[[Subject], str], subject: Subject) -> Verdict:
    """Run one check; its error becomes its verdict."""
    try:
        return Verdict(name, True, check(subject))
    except EvalmodeError as error:
        return Verdict(name, False, str(error), type(error).__name__)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        return Verdict(name, False, f"onnxruntime cannot run it: {error}", "ArtifactInvalid")


def _check_seal(artifact: bytes) -> str:
    check_digest(artifact)
    return "the bytes are those that were sealed"


def _check_metadata(metadata: Mapping[str, str]) -> str:
    return f"{len(read_manifest(metadata).labels)} labels"


def _list_opsets(graph: onnx.ModelProto) -> str:
    return "opset " + ", ".join(f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in graph.opset_import)


def _examine_artifact(artifact: bytes, manifest: Manifest) -> list[Verdict]:
    """Run an artifact's network, and compare it with its certificate."""
    certificate = manifest.certificate
    if certificate:
        inputs = certificate.inputs
    else:
        inputs = {name: draw_golden(contract, DRAWN) for name, contract in manifest.image_inputs.items()}
    verdicts = []
    if inputs:
        runs = partial(open_runs, artifact, manifest.optional_outputs)
        verdicts += _examine_runs(runs, inputs, len(manifest.labels), manifest.relative_tolerance)
    if certificate is None:
        return [*verdicts, Verdict("certificate", False, "none: its answers were never checked", "Uncertified")]
    claims = []
    if isinstance(manifest, ClassifierManifest) and manifest.certificate:
        claims.append(Claim(manifest, manifest.certificate))
    verdicts += [_judge(name, check, claim) for claim in claims for name, check in DECODER_CHECKS.items()]
    replay = Replay(certificate, artifact)
    verdicts += [_judge(name, check, replay) for name, check in REPLAY_CHECKS.items()]
    verdicts += [_judge(name, check, claim) for claim in claims for name, check in LABEL_CHECKS.items()]
    return verdicts


def _examine_foreign(artifact: bytes) -> list[Verdict]:
    """Run the network of a file without a manifest on drawn inputs, if it takes images."""
    try:
        inputs = open_cpu_session(artifact).get_inputs()
    except Exception as error:  # onnxruntime's own exceptions share no base class
        return [Verdict("runs", False, f"onnxruntime cannot load it: {error}", "ArtifactInvalid")]
    if len(inputs) != 1 or inputs[0].type not in ("tensor(float)", "tensor(uint8)") or len(inputs[0].shape) != 4:
        takes = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        return [Verdict("runs", None, f"it takes {takes}, not one batch of images")]
    batch, *sides = inputs[0].shape
    if not all(isinstance(side, int) for side in sides) or isinstance(batch, int):
        return [
            Verdict("runs", None, f"its input is {inputs[0].shape}: needs a fixed image size and a free batch size")
        ]
    rng, draw = np.random.default_rng(0), (DRAWN, *sides)
    drawn = rng.uniform(-1, 1, draw).astype(np.float32)
    if inputs[0].type == "tensor(uint8)":
        drawn = rng.integers(0, 256, draw).astype(np.uint8)
    return _examine_runs(partial(open_runs, artifact), {inputs[0].name: drawn}, 0, relative=False)


def _examine_runs(
    open_network: Callable[[], Sequence[Run]], inputs: Tensors, labels: int, relative: bool
) -> list[Verdict]:
    """Run a network on inputs; see ``Probe``."""
    try:
        probe = Probe(open_network(), inputs, labels, relative)
    except ArtifactInvalid as error:
        return [Verdict("runs", False, str(error), "ArtifactInvalid")]
    return [_judge(name, check, probe) for name, check in RUN_CHECKS.items()]
