"""Make a certificate: run a network in every way the server may, and put what it answers into the file.

Shapes: N images, H height, W width, C channels, K labels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from PIL import Image

from evalmode.artifact.certificate import LARGEST_TOLERANCE, ClassifierCertificate, Encoded, TensorCertificate
from evalmode.artifact.manifest import ClassifierManifest, Manifest
from evalmode.artifact.packing import MAX_UNPACKED_BYTES
from evalmode.artifact.sealing import check_operators, seal
from evalmode.artifact.tensors import INPUT, LOGITS, Tensors, scale_tolerance
from evalmode.certification.checks import (
    check_batches,
    check_eval_mode,
    check_finite,
    check_golden,
    check_outputs,
    check_repeats,
    open_runs,
)
from evalmode.certification.figures import Indices
from evalmode.images.pixels import PixelContract, Pixels
from evalmode.runtime.loading import load_artifact

FEWEST_GOLDEN, MOST_GOLDEN = 16, 64
# Least and greatest, of logits as `scale_tolerance` takes them, of other outputs as a share of their largest value.
TOLERANCE = 1e-4, LARGEST_TOLERANCE
FACTOR = 10.0  # of the largest difference measured, for processors that were not at hand
FILES = 4  # golden images kept as JPEG and as PNG, every other one larger than the network wants


def certify(
    graph: onnx.ModelProto, manifest: Manifest, golden: Tensors, targets: tuple[str, ...], difference: float
) -> bytes:
    """Prove that a graph is in eval mode and gives the same answers however it is run; seal it with its answers.

    Args:
        graph: numbers in, numbers out, the first axis of each the batch; where the manifest says that it classifies
            images, of the inputs and outputs that ``evalmode.artifact.certificate`` names.
        manifest: of labels, pixels and properties; its temperature is the property ``temperature``, else 1.
        golden: inputs that travel in the file, N of them; of a classifier of images ``image``, uint8 (N, H, W, C). Of
            large ones only the first travel: half of what a certificate may unpack to, the rest is for the outputs.
        targets: the names of their labels, "" where they have none.
        difference: the largest of an output that was measured elsewhere, between runtimes or optimisations; of a
            network that classifies no images, as a share of the output's largest value.

    Returns:
        The artifact's bytes.

    Raises:
        ProofFailed: what is wrong with the network.
        ArtifactInvalid: the result is not one that a server would load.
    """
    check_graph(graph)
    row_bytes = sum(array[0].nbytes for array in golden.values())
    count = max(1, MAX_UNPACKED_BYTES // 2 // max(1, row_bytes))
    golden, targets = {name: array[:count] for name, array in golden.items()}, targets[:count]
    runs = open_runs(graph.SerializeToString())
    check_outputs(runs[0], golden, len(manifest.labels))
    check_repeats(runs[0], golden)
    answers = [runs[0]({name: array[row : row + 1] for name, array in golden.items()}) for row in range(len(targets))]
    expected = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    same, largest = check_batches(runs, golden, TOLERANCE[1], relative=manifest.relative_tolerance)
    measured = FACTOR * max(difference, largest)
    certified: Manifest
    if isinstance(manifest, ClassifierManifest):
        bounds = [scale_tolerance(bound, expected[LOGITS]) for bound in TOLERANCE]
        certificate = ClassifierCertificate(
            inputs=golden,
            outputs=expected,
            tolerance=float(np.clip(measured, *bounds)),
            batch_invariant=same,
            targets=targets,
            answers=tuple(manifest.labels[index] for index in expected[LOGITS].argmax(axis=1)),
            temperature=float(manifest.properties.get("temperature", 1.0)),
            encoded=encode_some(golden[INPUT], manifest.pixels),
        )
        check_golden(certificate, manifest.labels, least_recalls(manifest))
        certified = replace(manifest, certificate=certificate)
    else:
        tolerance = float(np.clip(measured, *TOLERANCE))
        certified = replace(manifest, certificate=TensorCertificate(golden, expected, tolerance, same))
    artifact = seal(graph, certified)
    load_artifact(artifact)
    return artifact


def least_recalls(manifest: ClassifierManifest) -> Sequence[float]:
    """What share of each label's images the file says is right at least; 0 where it says nothing."""
    stated: Sequence[float] = manifest.properties.get("quality", {}).get("least_recalls", [0.0] * len(manifest.labels))
    return stated


def check_graph(graph: onnx.ModelProto) -> None:
    """What can be told of a graph before it runs.

    Raises:
        ProofFailed, ArtifactInvalid: see the checks.
    """
    check_operators(graph)
    check_eval_mode(graph)
    check_finite(graph)


def choose_golden(targets: Indices, labels: int) -> Indices:
    """Which images become golden: the first of every label, then the second, ...: at least 16, at most 64."""
    ranks = np.zeros(len(targets), np.int64)
    for label in range(labels):
        ranks[targets == label] = np.arange((targets == label).sum())
    wanted = min(MOST_GOLDEN, max(FEWEST_GOLDEN, labels), len(targets))
    return np.lexsort((targets, ranks))[:wanted]


def draw_golden(contract: PixelContract, labels: int) -> Pixels:
    """Golden images of no data set: noise on gradients, always the same."""
    height, width, channels = contract.shape
    rng = np.random.default_rng(0)
    count = min(MOST_GOLDEN, max(FEWEST_GOLDEN, labels))
    slopes = rng.uniform(-1, 1, (count, channels, 2))
    rows, columns = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[None, :, None]
    smooth = 127.5 + 64 * (slopes[:, None, None, :, 0] * rows + slopes[:, None, None, :, 1] * columns)
    return np.clip(smooth + rng.normal(0, 32, (count, *contract.shape)), 0, 255).astype(np.uint8)


def encode_some(golden: Pixels, contract: PixelContract) -> tuple[Encoded, ...]:
    """Golden images as files, JPEG and PNG, some of another size, so that decoding and resizing both are proven."""
    encoded = []
    for number, pixels in enumerate(golden[:FILES]):
        picture = Image.fromarray(pixels.squeeze(-1) if contract.channels == 1 else pixels)
        if number % 2:
            picture = picture.resize((contract.width * 3 // 2 + 1, contract.height * 3 // 2), Image.Resampling.NEAREST)
        for image_format in ("JPEG", "PNG"):
            buffer = io.BytesIO()
            picture.save(buffer, image_format)
            encoded.append(Encoded.of(buffer.getvalue(), contract))
    return tuple(encoded)


def strip(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what names the exporting machine: stack traces, scopes and doc strings."""
    stripped = onnx.ModelProto()
    stripped.CopyFrom(graph)
    onnx.helper.set_model_props(stripped, {})
    parts = [stripped.graph, *stripped.graph.node, *stripped.graph.input, *stripped.graph.output]
    parts += [*stripped.graph.value_info, *stripped.graph.initializer]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return stripped
