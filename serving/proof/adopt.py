"""Certify a network that evalmode did not train."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import onnx

from serving.artifact import Manifest
from serving.certificate import Floats
from serving.proof.certify import certify, choose_golden, draw_golden, strip
from serving.proof.checks import run_all
from serving.proof.figures import Quality, describe_pixels, measure_quality
from serving.proof.images import Labelled
from serving.proof.wrap import Preprocessing, wrap

VERSIONS = ("evalmode", "onnx", "onnxruntime", "numpy", "pillow")


def adopt(
    graph: onnx.ModelProto,
    names: tuple[str, str],
    preprocessing: Preprocessing,
    labels: tuple[str, ...],
    images: Labelled,
    synthetic: bool,
) -> tuple[bytes, Quality]:
    """Wrap a network, measure it on labelled images, and certify it.

    Args:
        graph: with its weights in it.
        names: of its input and of its output, (N, labels).
        preprocessing: what it wants done to pixels.
        labels: in the order of the output.
        images: to measure by, decoded for ``preprocessing``.
        synthetic: draw golden images, so that none of ``images`` travels in the file.

    Returns:
        The artifact's bytes, and how good it is on the images.

    Raises:
        ProofFailed, ArtifactInvalid: see ``certify``.
    """
    wrapped = strip(wrap(graph, *names, preprocessing, len(labels), probabilities=False))
    scores = run_all(wrapped, images.pixels)
    if gives_probabilities(scores):
        wrapped = strip(wrap(graph, *names, preprocessing, len(labels), probabilities=True))
    logits = run_all(wrapped, images.pixels)
    difference = float(np.abs(logits - run_all(wrapped, images.pixels, optimise=False)).max())
    quality = measure_quality(logits, images.targets, temperature=1.0)
    properties = {
        "network": "adopted",
        "preprocessing": {name: value for name, value in asdict(preprocessing).items() if name != "contract"},
        "quality": asdict(quality),
        "moments": {"pixels": describe_pixels(images.pixels), "layers": []},
        "versions": {name: version(name) for name in VERSIONS},
    }
    if synthetic:
        golden, targets = draw_golden(preprocessing.contract, len(labels)), None
    else:
        chosen = choose_golden(images.targets, len(labels))
        golden, targets = images.pixels[chosen], images.targets[chosen]
    told = ("",) * len(golden) if targets is None else tuple(labels[target] for target in targets)
    return certify(wrapped, Manifest(labels, preprocessing.contract, properties), golden, told, difference), quality


def gives_probabilities(scores: Floats) -> bool:
    """Whether every row is in 0..1 and sums to 1."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3))
