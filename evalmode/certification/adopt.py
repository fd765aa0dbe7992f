"""Certify a network that evalmode did not train."""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

from evalmode.artifact.image_statistics import describe_images
from evalmode.artifact.manifest import ClassifierManifest, TensorManifest
from evalmode.artifact.sealing import seal
from evalmode.artifact.tensors import INPUT, LOGITS, Array, Floats, Tensors, largest_value, scale_tolerance
from evalmode.certification.certify import MOST_GOLDEN, certify, choose_golden, draw_golden, strip
from evalmode.certification.checks import run_all
from evalmode.certification.figures import Quality, describe_pixels, measure_quality
from evalmode.certification.foreign import describe, find_batch, first_line, free_batch, name_type
from evalmode.certification.images import Labelled
from evalmode.certification.wrap import Preprocessing, wrap
from evalmode.errors import UsageError
from evalmode.runtime.loading import LoadOptions, load_artifact
from evalmode.runtime.session import ORT_VERSION, open_cpu_session

MAX_COMPARED = 64  # inputs that a network is run on before and after it was freed of its size of batch
FREED_TOLERANCE = 1e-4  # between them, as `scale_tolerance` takes it: sums are ordered otherwise
DISTRIBUTIONS = ("evalmode", "onnx", "numpy", "pillow")


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
    freed = free_batch(graph)
    wrapped = strip(wrap(freed, *names, preprocessing, len(labels), probabilities=False))
    if batch := find_batch(graph):
        original = wrap(graph, *names, preprocessing, len(labels), probabilities=False)
        _check_freed(original, wrapped, batch, {INPUT: images.pixels}, [LOGITS])
    scores = run_all(wrapped, images.pixels)
    if scores.shape != (len(images.pixels), len(labels)):
        raise UsageError(f"the network gives {scores.shape[1:]} values an image, there are {len(labels)} labels")
    if gives_probabilities(scores):
        wrapped = strip(wrap(freed, *names, preprocessing, len(labels), probabilities=True))
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
        "versions": _list_versions(),
    }
    if synthetic:
        golden, targets = draw_golden(preprocessing.contract, len(labels)), None
    else:
        chosen = choose_golden(images.targets, len(labels))
        golden, targets = images.pixels[chosen], images.targets[chosen]
    told = ("",) * len(golden) if targets is None else tuple(labels[target] for target in targets)
    manifest = ClassifierManifest(labels, preprocessing.contract, properties)
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
    stripped = strip(free_batch(graph))
    if batch := find_batch(graph):
        _check_freed(graph, stripped, batch, samples, [output.name for output in graph.graph.output])
    manifest = TensorManifest({"network": "adopted", "versions": _list_versions()})
    answers = load_artifact(seal(stripped, manifest), options=LoadOptions(allow_uncertified=True)).run(samples)
    unoptimised = open_cpu_session(stripped.SerializeToString(), optimise=False).run(list(answers), dict(samples))
    pairs = zip(answers.values(), unoptimised, strict=True)
    difference = max(float(np.abs(one.astype(np.float64) - other).max()) / largest_value(one) for one, other in pairs)
    count = len(next(iter(samples.values())))
    return certify(stripped, manifest, samples, ("",) * count, difference)


def _check_freed(
    original: onnx.ModelProto, freed: onnx.ModelProto, batch: int, inputs: Tensors, outputs: list[str]
) -> None:
    """A network that was fixed to a size of batch is the same one without.

    Args:
        original: fixed to it.
        freed: takes any.
        batch: the size.
        inputs: to run both on, of any number; as many batches of them as there are whole ones, at least one.
        outputs: the names of those that are compared.

    Raises:
        UsageError: it does not run in other batches, or answers otherwise.
    """
    advice = "export it with a batch of any size (torch: dynamic_shapes, Keras: a batch size of None)"
    count = max(batch, min(MAX_COMPARED, len(next(iter(inputs.values())))) // batch * batch)
    rows = {name: np.resize(array, (count, *array.shape[1:])) for name, array in inputs.items()}
    try:
        answers = open_cpu_session(freed.SerializeToString(), optimise=False).run(outputs, dict(rows))
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise UsageError(
            f"the network is fixed to batches of {batch}, and does not run in others: {advice}: {first_line(error)}"
        ) from error
    session = open_cpu_session(original.SerializeToString(), optimise=False)
    parts = [
        session.run(outputs, {name: array[start : start + batch] for name, array in rows.items()})
        for start in range(0, count, batch)
    ]
    for told, answer in zip(zip(*parts, strict=True), answers, strict=True):
        if not _agree(np.concatenate([np.atleast_1d(one) for one in told]), np.asarray(answer)):
            raise UsageError(f"the network is fixed to batches of {batch}, and gives other answers in others: {advice}")


def _agree(one: Array, other: Array) -> bool:
    """Whether two outputs are the same; numbers up to what float32 rounds away in the network."""
    if one.shape != other.shape or not np.issubdtype(one.dtype, np.number):
        return np.array_equal(one, other)
    difference = float(np.abs(one.astype(np.float64) - other).max())
    return difference <= scale_tolerance(FREED_TOLERANCE, one)


def read_samples(path: Path, graph: onnx.ModelProto) -> Tensors:
    """Inputs of a network from an ``.npz``, at most as many as become golden.

    Raises:
        UsageError: they are not what the network takes.
    """
    wanted = {one.name: name_type(one.type.tensor_type.elem_type) for one in graph.graph.input}
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            samples = {str(name): np.atleast_1d(array) for name, array in archive.items()}
        except Exception as error:  # numpy, zipfile, zlib and tokenize raise a dozen types of damaged headers
            raise UsageError(f"{path} is not an .npz of arrays, or a damaged one: {first_line(error)}") from error
    given = {name: array.dtype.name for name, array in samples.items()}
    if given != wanted:
        raise UsageError(f"{path} holds {_list(given)}; the network takes {_list(wanted)}")
    counts = {len(array) for array in samples.values()}
    if len(counts) != 1 or not min(counts):
        raise UsageError(
            f"{path} holds {', '.join(map(str, sorted(counts)))} rows: expected as many of each input, at least 1"
        )
    for value in graph.graph.input:
        array, kind = samples[value.name], value.type.tensor_type
        sides = [dim.dim_value for dim in kind.shape.dim]
        fits = len(sides) == array.ndim and all(
            side in (0, found) for side, found in zip(sides[1:], array.shape[1:], strict=True)
        )
        if kind.HasField("shape") and not fits:
            raise UsageError(f"{path} holds {value.name} {array.shape}; the network takes {describe(value)}")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise UsageError(f"{path}: {value.name} holds NaN or infinite values")
    return {name: array[:MOST_GOLDEN] for name, array in samples.items()}


def _list(dtypes: dict[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(dtypes.items())) or "nothing"


def _list_versions() -> dict[str, str]:
    return {**{name: version(name) for name in DISTRIBUTIONS}, "onnxruntime": ORT_VERSION}


def gives_probabilities(scores: Floats) -> bool:
    """Whether every row is in 0..1 and sums to 1."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def check_loads(graph: onnx.ModelProto, path: Path) -> None:
    """A network can be loaded by the onnxruntime that is installed.

    Raises:
        UsageError: it cannot.
    """
    try:
        open_cpu_session(graph.SerializeToString())
    except Exception as error:  # onnxruntime's own exceptions share no base class
        if newest := re.search(r"till opset (\d+)", str(error)):
            raise UsageError(
                f"{path} needs a later opset than the {newest[1]} that onnxruntime {ORT_VERSION} runs: export it with "
                "opset 20, or install a newer onnxruntime"
            ) from error
        raise UsageError(f"{path} cannot be loaded by onnxruntime: {first_line(error)}") from error


def runs_on(graph: onnx.ModelProto, shape: tuple[int, ...]) -> bool:
    """Whether a network of one input runs on one input of a shape."""
    (value,) = graph.graph.input
    freed = free_batch(graph)
    zeros = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    try:
        open_cpu_session(freed.SerializeToString()).run(None, {value.name: zeros})
    except Exception:  # onnxruntime's own exceptions share no base class
        return False
    return True


def takes_bytes(graph: onnx.ModelProto) -> bool:
    """Whether the first input is uint8."""
    return bool(graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8)
