"""Certify ONNX networks that other tools exported: image classifiers, and networks of other tensors."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from evalmode.artifact.image_statistics import describe_images
from evalmode.artifact.manifest import ClassifierManifest, TensorManifest
from evalmode.artifact.sealing import seal
from evalmode.artifact.tensors import INPUT, Floats, Tensors, largest_value
from evalmode.certification.adapt import drop_inputs, keep_numbers
from evalmode.certification.assumed import check_resize, list_assumed, list_read, survey_images
from evalmode.certification.batch_sizes import allow_batches
from evalmode.certification.certified import CertifiedClassifier, CertifiedNetwork
from evalmode.certification.certify import certify, choose_golden, draw_golden, strip
from evalmode.certification.exact import Taken, wrap_exactly
from evalmode.certification.found.found import REQUIRED, FoundNetwork, find_network
from evalmode.certification.found.place import find_place
from evalmode.certification.graph import check_finite
from evalmode.certification.guessing import check_better_than_guessing
from evalmode.certification.images import Labelled, read_labelled
from evalmode.certification.inputs import ImageInput, read_input
from evalmode.certification.metrics import Quality, describe_pixels, measure_quality
from evalmode.certification.onnx_files import explained, find_batch, first_line, free_batch, read_network
from evalmode.certification.preprocessing import ClassifierOptions, Preprocessing
from evalmode.certification.reference import Reference, check_answers, read_answers, to_answers
from evalmode.certification.runs import run_all
from evalmode.certification.samples import check_samples, read_samples
from evalmode.errors import OutputsMismatch, UsageError
from evalmode.images.label_files import read_labels
from evalmode.images.pixels import PixelContract, Pixels
from evalmode.runtime.loading import LoadOptions, load_artifact
from evalmode.runtime.session import ORT_VERSION, open_cpu_session, silence_run

DISTRIBUTIONS = ("evalmode", "onnx", "numpy", "pillow")
UNPROVEN = "nothing compared these answers with those of the library that made the network: give --reference"
FilePath = str | PathLike[str]


def certify_classifier(
    file: FilePath,
    images: FilePath,
    labels: FilePath | Sequence[str] | None,
    preprocessing: Preprocessing | None,
    contract: PixelContract | None,
    options: ClassifierOptions,
) -> CertifiedClassifier:
    """Certify an image classifier in an ONNX file, see ``evalmode.certify``.

    Args:
        file: An ONNX file, or a folder with one.
        images: Labelled images: a folder ``<label>/<image>``, or a table of files and labels.
        labels: K labels in the order of the network's output, or a text file of them, one a line.
        preprocessing: The preprocessing that the network expects.
        contract: The pixels that the network takes.
        options: How it is certified.

    Returns:
        The artifact, and how good it is on the images.

    Raises:
        DataError: A table does not fit its images or the labels.
        UsageError: The file, a folder or an option cannot be used, or a required fact is missing.
        ProofFailed: The network did not pass a check.
    """
    stated = {**state_facts(labels, preprocessing), **({"output": options.output} if options.output else {})}
    return certify_found(find_network(Path(file), stated, contract), images, options, warnings.warn)


def state_facts(labels: FilePath | Sequence[str] | None, preprocessing: Preprocessing | None) -> dict[str, Any]:
    """Check labels and preprocessing of a caller, and return the facts that they state, by name.

    Args:
        labels: K labels, or a text file of them; None states nothing.
        preprocessing: The preprocessing; None states nothing.

    Raises:
        UsageError: One of them is something else, or a label occurs twice.
    """
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        raise UsageError(f"preprocessing is {preprocessing!r}: expected a Preprocessing, such as Preprocessing((0, 1))")
    stated = {} if preprocessing is None else dict(vars(preprocessing))
    return stated if labels is None else {**stated, "labels": _read_labels(labels)}


def certify_found(
    found: FoundNetwork, images: FilePath, options: ClassifierOptions, on_warning: Callable[[str], None]
) -> CertifiedClassifier:
    """Certify an image classifier, as ``evalmode.certify`` does, with facts that were read before.

    Args:
        found: The network and the facts about it.
        images: Labelled images: a folder ``<label>/<image>``, or a table of files and labels.
        options: How it is certified; the output is that of the facts.
        on_warning: Called with a sentence for each kind of file in the folder that is not read.

    Raises:
        DataError: A table does not fit its images or the labels.
        UsageError: A folder or a fact cannot be used, or a required fact is missing.
        ProofFailed: The network did not pass a check.
    """
    if missing := [name for name in REQUIRED if name not in found.facts]:
        stated = {"labels": "labels", "scale": "preprocessing"}
        raise UsageError(f"{found.name}: no file states {' and '.join(stated[name] for name in missing)}: state them")
    graph, names, preprocessing = found.graph, found.labels, found.preprocessing
    check_loads(graph, found.name)
    with explained(found.name):
        image = read_input(graph, found.size, partial(_runs_on, graph))
        image = replace(image, contract=found.choose_contract(image.contract))
        transform = preprocessing.to_transform(image.contract, _takes_bytes(graph))
        labelled = read_labelled(Path(images), names, image.contract, options.limits)
        for warning in labelled.warnings:
            on_warning(warning)
        survey = survey_images(labelled.paths, options.limits, image.contract.exif_orientation)
        check_resize(found, survey, image.contract.size)
        wrapped = wrap_exactly(Taken(graph, image, transform), len(names), found.output, labelled.pixels)
        logits = run_all(wrapped.graph, labelled.pixels)
        _check_logits(wrapped.graph, logits)
        difference = float(np.abs(logits - run_all(wrapped.graph, labelled.pixels, optimise=False)).max())
        quality = measure_quality(logits, labelled.targets, temperature=1.0)
        by_file, by_library, unproven = [], [], []
        if options.reference is not None:
            answers = read_answers(Path(options.reference), labelled, names)
            if not answers.states_labels:
                unproven.append(f"{answers.source} states no labels: their order was not compared")
            by_file.append(check_answers(answers, logits, labelled, list_read(found, survey)))
        if found.library is not None:
            answers = to_answers(found.library.name, found.library.run(labelled.pixels), wrapped.kind)
            by_library.append(check_answers(answers, logits, labelled))
        references = (*by_file, *by_library)
        if not references:
            unproven.append(UNPROVEN)
        described = {"layout": image.layout, **asdict(transform)}
        properties = _describe_classifier(described, quality, references, labelled)
        golden, targets = _choose_golden(labelled, image.contract, names, options.synthetic_golden)
        manifest = ClassifierManifest(names, image.contract, properties)
        artifact = certify(wrapped.graph, manifest, {INPUT: golden}, targets, difference)
    if not options.allow_guessing:
        check_better_than_guessing(quality, logits, names, by_file)
    notes = (*found.notes, *list_assumed(found, survey, image.contract), *wrapped.notes, *unproven)
    return CertifiedClassifier(artifact, names, image.contract, image.layout, quality, references, notes)


def _check_logits(graph: onnx.ModelProto, logits: Floats) -> None:
    """Check that the network answers all images with finite numbers; if not, weights are named first."""
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        check_finite(graph)
        raise OutputsMismatch(
            f"{bad} of {len(logits)} images get values that are NaN or infinite: are --scale, --mean and --std right?"
        )


def certify_tensors(file: FilePath, samples: FilePath | Tensors) -> CertifiedNetwork:
    """Certify a network that is not an image classifier, as it is.

    Args:
        file: An ONNX file, or a folder with one.
        samples: Inputs by name, N along the first axis of each, or an ``.npz`` file of them. The first 64 become
            golden inputs, which are in the artifact.

    Returns:
        The artifact and its golden inputs.

    Raises:
        UsageError: A file cannot be used, or the samples do not fit the network.
        ProofFailed: The network did not pass a check.
    """
    file = find_place(Path(file)).file
    graph, dropped = drop_inputs(read_network(file))
    graph, changed = keep_numbers(graph)
    check_loads(graph, str(file))
    if isinstance(samples, Mapping):
        inputs = check_samples(samples, graph, "samples")
    else:
        inputs = read_samples(Path(samples), graph)
    with explained(str(file)):
        outputs = [output.name for output in graph.graph.output]
        network, note = allow_batches(graph, free_batch(graph), find_batch(graph), inputs, outputs)
        stripped = strip(network)
        manifest = TensorManifest({"network": "adopted", "versions": _list_versions()})
        sealed = seal(stripped, manifest)
        answers = load_artifact(sealed, options=LoadOptions(allow_uncertified=True)).run(inputs)
        unoptimised = open_cpu_session(stripped.SerializeToString(), optimise=False).run(list(answers), dict(inputs))
        pairs = zip(answers.values(), unoptimised, strict=True)
        differences = (np.abs(one.astype(np.float64) - other).max() / largest_value(one) for one, other in pairs)
        targets = ("",) * len(next(iter(inputs.values())))
        artifact = certify(stripped, manifest, inputs, targets, max(map(float, differences)))
    return CertifiedNetwork(artifact, inputs, (*dropped, *changed, *([note] if note else [])))


def check_loads(graph: onnx.ModelProto, name: str) -> None:
    """Check that the installed ONNX Runtime can load a network.

    Args:
        graph: The network.
        name: What the message calls it.

    Raises:
        UsageError: It cannot.
    """
    try:
        open_cpu_session(graph.SerializeToString())
    except Exception as error:  # onnxruntime's own exceptions share no base class
        if newest := re.search(r"till opset (\d+)", str(error)):
            raise UsageError(
                f"{name} needs a later opset than the {newest[1]} that onnxruntime {ORT_VERSION} runs: export it with "
                "opset 20, or install a newer onnxruntime"
            ) from error
        raise UsageError(f"{name} cannot be loaded by onnxruntime: {first_line(error)}") from error


def _runs_on(graph: onnx.ModelProto, image: ImageInput) -> bool:
    """Whether a network of one input runs on one blank image."""
    (value,) = graph.graph.input
    freed = free_batch(graph)
    zeros = np.zeros(image.shape, onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    try:
        open_cpu_session(freed.SerializeToString()).run(None, {value.name: zeros}, silence_run())
    except Exception:  # onnxruntime's own exceptions share no base class
        return False
    return True


def _takes_bytes(graph: onnx.ModelProto) -> bool:
    """Whether the first input is uint8."""
    return bool(graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8)


def _read_labels(labels: FilePath | Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str | PathLike):
        return read_labels(Path(labels))
    labels = list(labels)
    if other := [label for label in labels if not isinstance(label, str)]:
        raise UsageError(f"labels contain {other[0]!r}: expected strings")
    names = tuple(unicodedata.normalize("NFC", label) for label in labels)
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"labels {', '.join(names)}: expected at least 2, each once")
    return names


def _describe_classifier(
    preprocessing: Mapping[str, object], quality: Quality, references: Sequence[Reference], images: Labelled
) -> dict[str, object]:
    """The properties of its manifest."""
    return {
        "network": "adopted",
        "preprocessing": preprocessing,
        "quality": asdict(quality),
        "references": [asdict(one) for one in references],
        "moments": {
            "pixels": describe_pixels(images.pixels),
            "images": describe_images(images.pixels),
            "layers": [],
        },
        "versions": _list_versions(),
    }


def _choose_golden(
    images: Labelled, contract: PixelContract, labels: tuple[str, ...], synthetic: bool
) -> tuple[Pixels, tuple[str, ...]]:
    """Golden images, and their labels where they have any."""
    if synthetic:
        golden = draw_golden(contract, len(labels))
        return golden, ("",) * len(golden)
    chosen = choose_golden(images.targets, len(labels))
    return images.pixels[chosen], tuple(labels[target] for target in images.targets[chosen])


def _list_versions() -> dict[str, str]:
    return {**{name: version(name) for name in DISTRIBUTIONS}, "onnxruntime": ORT_VERSION}
