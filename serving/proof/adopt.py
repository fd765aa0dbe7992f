"""Certify a network that evalmode did not train."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import onnx

from serving.artifact import Manifest, seal
from serving.certificate import INPUT, Floats, Tensors, largest_value
from serving.drift import describe_images
from serving.errors import UsageError
from serving.model import load_artifact, open_cpu_session
from serving.proof.certify import MOST_GOLDEN, certify, choose_golden, draw_golden, strip
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
        "moments": {
            "pixels": describe_pixels(images.pixels),
            "images": describe_images(images.pixels),
            "layers": [],
        },
        "versions": {name: version(name) for name in VERSIONS},
    }
    if synthetic:
        golden, targets = draw_golden(preprocessing.contract, len(labels)), None
    else:
        chosen = choose_golden(images.targets, len(labels))
        golden, targets = images.pixels[chosen], images.targets[chosen]
    told = ("",) * len(golden) if targets is None else tuple(labels[target] for target in targets)
    manifest = Manifest(labels, preprocessing.contract, properties)
    return certify(wrapped, manifest, {INPUT: golden}, told, difference), quality


def adopt_tensors(graph: onnx.ModelProto, samples: Tensors) -> bytes:
    """Certify a network that is no classifier of images, as it is.

    Args:
        graph: with its weights in it.
        samples: inputs by name, all of which travel in the file.

    Returns:
        The artifact's bytes.

    Raises:
        ProofFailed, ArtifactInvalid: see ``certify``.
    """
    stripped = strip(graph)
    manifest = Manifest((), None, {"network": "adopted", "versions": {name: version(name) for name in VERSIONS}})
    answers = load_artifact(seal(stripped, manifest), allow_uncertified=True).run(samples)
    unoptimised = open_cpu_session(stripped.SerializeToString(), optimise=False).run(list(answers), dict(samples))
    pairs = zip(answers.values(), unoptimised, strict=True)
    difference = max(float(np.abs(one.astype(np.float64) - other).max()) / largest_value(one) for one, other in pairs)
    count = len(next(iter(samples.values())))
    return certify(stripped, manifest, samples, ("",) * count, difference)


def read_samples(path: Path, graph: onnx.ModelProto) -> Tensors:
    """Inputs of a network from an ``.npz``, at most as many as become golden.

    Raises:
        UsageError: they are not what the network takes.
    """
    weights = {tensor.name for tensor in graph.graph.initializer}
    wanted = {
        one.name: onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type).name
        for one in graph.graph.input
        if one.name not in weights
    }
    try:
        archive = np.load(path, allow_pickle=False)
        samples = {str(name): np.atleast_1d(array) for name, array in archive.items()}
    except (OSError, ValueError, AttributeError, BadZipFile) as error:
        raise UsageError(f"{path} is not an .npz of arrays: {error}") from error
    given = {name: array.dtype.name for name, array in samples.items()}
    if given != wanted:
        raise UsageError(f"{path} holds {_list(given)}; the network takes {_list(wanted)}")
    counts = {len(array) for array in samples.values()}
    if len(counts) != 1 or not min(counts):
        raise UsageError(f"{path} holds {', '.join(map(str, sorted(counts)))} rows: as many of each input are wanted")
    return {name: array[:MOST_GOLDEN] for name, array in samples.items()}


def _list(dtypes: dict[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(dtypes.items())) or "nothing"


def gives_probabilities(scores: Floats) -> bool:
    """Whether every row is in 0..1 and sums to 1."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3))
