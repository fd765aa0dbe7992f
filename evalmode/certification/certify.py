"""Make a certificate: run a network in every way in which a server may, and seal it together with its answers.

Shapes: N images, H height, W width, C channels, K labels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from evalmode.artifact.certificate import LARGEST_TOLERANCE, ClassifierCertificate, TensorCertificate
from evalmode.artifact.manifest import ClassifierManifest, Manifest, TensorManifest
from evalmode.artifact.packing import MAX_UNPACKED_BYTES
from evalmode.artifact.sealing import seal
from evalmode.artifact.tensors import INPUT, LOGITS, Run, Tensors, scale_tolerance
from evalmode.certification.checks import GRAPH_CHECKS, RUN_CHECKS
from evalmode.certification.golden import check_golden, least_recalls
from evalmode.certification.golden_images import MAX_GOLDEN, MIN_GOLDEN, encode_golden, encode_some
from evalmode.certification.metrics import Indices
from evalmode.certification.runs import Probe, open_runs
from evalmode.images.pixels import PixelContract, Pixels
from evalmode.runtime.loading import load_artifact

MIN_TOLERANCE = 1e-4  # for logits as `scale_tolerance` takes it, for other outputs a share of their largest value
FACTOR = 10.0  # tolerance to largest difference measured: other processors round otherwise
MAX_MAPS, MAP_BYTES = 4, 2**16  # optional outputs that are recorded: of so many golden images, if they are so small


def certify(
    graph: onnx.ModelProto, manifest: Manifest, golden: Tensors, targets: tuple[str, ...], difference: float
) -> bytes:
    """Check a graph in every way, and seal it with its answers to golden inputs.

    Args:
        graph: The first axis of each input and output is the batch. For an image classifier, its inputs and outputs
            are those that ``evalmode.artifact.tensors`` names.
        manifest: Labels, pixels and properties; the temperature is the property ``temperature``, by default 1.
        golden: N inputs by name to keep in the file, for an image classifier ``image``, uint8 (N, H, W, C). They may
            take half of what a certificate may unpack to, the other half is for outputs; the rest is left out.
        targets: N labels of the golden inputs; "" where there is none.
        difference: The largest difference of an output that was measured elsewhere, between runtimes or optimisations:
            of logits, or for other networks as a share of the output's largest value.

    Returns:
        The bytes of the artifact.

    Raises:
        ProofFailed: A check did not pass.
        ArtifactInvalid: A server could not load the result.
    """
    check_graph(graph)
    golden, targets = _limit_golden(golden, targets)
    encoded = encode_golden(golden[INPUT]) if isinstance(manifest, ClassifierManifest) else None
    if encoded:
        golden, targets = {INPUT: encoded.decode()}, targets[: len(encoded.images)]
    content = graph.SerializeToString()
    runs = open_runs(content, manifest.optional_outputs)
    probe = Probe(runs, golden, len(manifest.labels), manifest.relative_tolerance)
    for check in RUN_CHECKS.values():
        check(probe)
    if isinstance(manifest, ClassifierManifest):
        certificate = _certify_classifier(probe, manifest, targets, difference)
        optional = _run_optional(open_runs(content)[0], golden, manifest.optional_outputs)
        certified: Manifest = replace(manifest, certificate=replace(certificate, golden=encoded, optional=optional))
    else:
        certified = _certify_tensors(probe, manifest, difference)
    artifact = seal(graph, certified)
    load_artifact(artifact)
    return artifact


def _limit_golden(golden: Tensors, targets: tuple[str, ...]) -> tuple[Tensors, tuple[str, ...]]:
    """As many golden inputs as fit into a certificate, at least one."""
    row_bytes = sum(array[0].nbytes for array in golden.values())
    count = max(1, MAX_UNPACKED_BYTES // 2 // max(1, row_bytes))
    return {name: array[:count] for name, array in golden.items()}, targets[:count]


def _certify_classifier(
    probe: Probe, manifest: ClassifierManifest, targets: tuple[str, ...], difference: float
) -> ClassifierCertificate:
    """The certificate of an image classifier that passed the checks."""
    logits = probe.alone[LOGITS]
    least, most = (scale_tolerance(bound, logits) for bound in (MIN_TOLERANCE, LARGEST_TOLERANCE))
    certificate = ClassifierCertificate(
        inputs=probe.inputs,
        outputs=probe.alone,
        tolerance=float(np.clip(FACTOR * max(difference, probe.batches.largest), least, most)),
        batch_invariant=probe.batches.same_bits,
        targets=targets,
        answers=tuple(manifest.labels[index] for index in logits.argmax(axis=1)),
        temperature=float(manifest.properties.get("temperature", 1.0)),
        encoded=encode_some(probe.inputs[INPUT], manifest.pixels),
    )
    check_golden(certificate, manifest.labels, least_recalls(manifest))
    return certificate


def _run_optional(run: Run, golden: Tensors, names: tuple[str, ...]) -> Tensors:
    """The optional outputs of the first golden images, as many as are small enough to record."""
    if not names:
        return {}
    count = min(MAX_MAPS, len(golden[INPUT]))
    rows = [run({name: array[row : row + 1] for name, array in golden.items()}) for row in range(count)]
    kept = rows[: MAP_BYTES // sum(rows[0][name].nbytes for name in names)]
    return {name: np.concatenate([row[name] for row in kept]) for name in names if kept}


def _certify_tensors(probe: Probe, manifest: TensorManifest, difference: float) -> TensorManifest:
    """The manifest of a network of tensors that passed the checks, with its certificate."""
    tolerance = float(np.clip(FACTOR * max(difference, probe.batches.largest), MIN_TOLERANCE, LARGEST_TOLERANCE))
    return replace(
        manifest, certificate=TensorCertificate(probe.inputs, probe.alone, tolerance, probe.batches.same_bits)
    )


def check_graph(graph: onnx.ModelProto) -> None:
    """Run the checks that need no session.

    Args:
        graph: The graph, with its weights.

    Raises:
        OperatorNotAllowed: The graph needs operators or data that are not in the file.
        ProofFailed: It is not in eval mode, or a weight is not finite.
    """
    for check in GRAPH_CHECKS.values():
        check(graph)


def choose_golden(targets: Indices, labels: int) -> Indices:
    """Choose golden images: the first of every label, then the second of every label, and so on.

    Args:
        targets: The index of each image's label, int64 (N,).
        labels: K.

    Returns:
        The positions of the chosen images, one for each label if possible, 16 to 64.
    """
    ranks = np.zeros(len(targets), np.int64)
    for label in range(labels):
        ranks[targets == label] = np.arange((targets == label).sum())
    count = min(MAX_GOLDEN, max(MIN_GOLDEN, labels), len(targets))
    return np.lexsort((targets, ranks))[:count]


def draw_golden(contract: PixelContract, labels: int) -> Pixels:
    """Draw synthetic golden images: noise on gradients, the same at every call.

    Args:
        contract: The shape of the pixels.
        labels: K.

    Returns:
        uint8 (N, H, W, C), N as in ``choose_golden``.
    """
    height, width, channels = contract.shape
    rng = np.random.default_rng(0)
    count = min(MAX_GOLDEN, max(MIN_GOLDEN, labels))
    slopes = rng.uniform(-1, 1, (count, channels, 2))
    rows, columns = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[None, :, None]
    smooth = 127.5 + 64 * (slopes[:, None, None, :, 0] * rows + slopes[:, None, None, :, 1] * columns)
    return np.clip(smooth + rng.normal(0, 32, (count, *contract.shape)), 0, 255).astype(np.uint8)


def strip(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph without metadata and doc strings, which hold stack traces and paths of the exporting machine.

    Args:
        graph: The graph, which is not changed.

    Returns:
        The copy.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(graph)
    onnx.helper.set_model_props(stripped, {})
    parts = [stripped.graph, *stripped.graph.node, *stripped.graph.input, *stripped.graph.output]
    parts += [*stripped.graph.value_info, *stripped.graph.initializer]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return stripped
