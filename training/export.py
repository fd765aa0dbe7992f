"""Export a run in eval mode to one self-contained, byte-reproducible ``model.onnx`` with its certificate."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxscript.optimizer
from torch import nn

from evalmode.artifact.image_statistics import describe_images
from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.sealing import open_artifact
from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT
from evalmode.certification.activation_map import add_activation_map
from evalmode.certification.certify import certify, check_graph, choose_golden, draw_golden, strip
from evalmode.certification.fold import Norm, fold_norms
from evalmode.certification.large import choose_sample
from evalmode.certification.metrics import Quality, describe_pixels, measure_quality
from evalmode.certification.moments import check_moments
from evalmode.certification.quantize import check_gain, measure_gain, quantize
from evalmode.certification.runs import run_all
from evalmode.images.pixels import Pixels
from evalmode.runtime.loading import load_artifact
from training.agreement import Agreement, Expected, check_fold, expect_answers, measure_agreement
from training.datasets import Dataset, Split
from training.errors import LabelsReordered
from training.evaluation import predict_logits, split_evaluation
from training.kept_statistics import check_kept_statistics
from training.map_agreement import measure_map_difference
from training.networks import explain_errors
from training.onnx_export import Deployed, Mirrored, export_network
from training.review import Review
from training.run import BEST, EXACT, INITIAL, Run
from training.statistics import choose_images, choose_layers, list_moved, recompute_statistics
from training.temperature import choose_temperature
from training.versions import list_versions


@dataclass(frozen=True)
class Exported:
    """An artifact that passed all checks.

    Attributes:
        artifact: Content of ``model.onnx``.
        agreement: How well ONNX Runtime agrees with torch on test images.
        quality: Accuracy and calibration of the artifact on all test images.
        temperature_reason: Why this temperature was chosen, in words.
    """

    artifact: bytes
    agreement: Agreement
    quality: Quality
    temperature_reason: str


@dataclass(frozen=True, eq=False)
class _Network:
    """A network with exact batch norm statistics, in eval mode on the CPU, and its data set.

    Attributes:
        name: Its name, for messages.
        module: The network.
        moved: Names of the batch norm layers whose statistics training changed.
        dataset: The data set that it was trained on.
        shape: (height, width, channels) of the images.
    """

    name: str
    module: nn.Module
    moved: list[str]
    dataset: Dataset
    shape: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class _CheckedGraph:
    """A folded graph that agrees with torch.

    Attributes:
        graph: The graph, without certificate.
        agreement: How well it agrees with torch.
        quality: Its accuracy and calibration.
        properties: What the manifest records about the checks.
        optional_outputs: The names of its optional outputs.
    """

    graph: onnx.ModelProto
    agreement: Agreement
    quality: Quality
    properties: dict[str, Any]
    optional_outputs: tuple[str, ...]


def export_run(run: Run, dataset: Dataset, mirrored: bool = False, synthetic: bool = False) -> Exported:
    """Export the best weights of a run, and check the result on all test images.

    Args:
        run: A run with its best weights.
        dataset: The data set that it was trained on.
        mirrored: Whether to answer with the mean over an image and its mirror image.
        synthetic: Whether to draw the golden images, so that the file holds no validation image.

    Returns:
        The artifact, and what was measured.

    Raises:
        ExportRefused: The data have other labels, or a check against torch fails.
        ProofFailed: A check of the certificate fails.
        RunError: The run has no usable weights.
        NetworkError: The code of the network fails, or has changed since the training.
    """
    if run.config.labels != dataset.labels:
        raise LabelsReordered(
            f"the run was trained on the labels {', '.join(run.config.labels)}, the data has "
            f"{', '.join(dataset.labels)}: expected the same, in the same order"
        )
    name = run.config.recipe.network
    with explain_errors(name, "at export"):
        module = _load_network(run, dataset, mirrored)
        network = _Network(name, module, _list_moved(run, mirrored), dataset, run.config.shape)
        temperature, reason = choose_temperature(predict_logits(module, dataset.val), dataset.val.targets)
        checked = _export_checked(network, temperature)
    recipe, review = asdict(run.config.recipe), Review.read(run.folder)
    quality = replace(checked.quality, cross_validated=review.cross_validated if review else None)
    properties = {
        "network": recipe.pop("network"),
        "mirrored": mirrored,
        "temperature": temperature,
        "training": {**recipe, "data_digest": run.config.data_digest},
        **checked.properties,
        "quality": asdict(quality),
        "versions": list_versions(),
    }
    manifest = ClassifierManifest(
        run.config.labels, dataset.contract, properties, optional_outputs=checked.optional_outputs
    )
    golden, names = _choose_golden(dataset, synthetic)
    difference = checked.agreement.max_logit_difference
    artifact = certify(checked.graph, manifest, {INPUT: golden}, names, difference)
    return Exported(artifact, checked.agreement, quality, reason)


def _export_checked(network: _Network, temperature: float) -> _CheckedGraph:
    """Export a network, fold its batch norms, and check the graph against torch on test images."""
    test = network.dataset.test
    chosen = choose_sample(test.images)
    compared = Split(test.images[chosen], test.targets[chosen])
    expected = expect_answers(network.module, compared)
    unfolded, outputs = export_network(network.name, Deployed(network.module, temperature), network.shape)
    check_graph(unfolded)
    folded, norms = fold_norms(unfolded)
    norms = [replace(norm, name=norm.name.removeprefix("network.")) for norm in norms]
    fold_difference = check_fold(
        run_all(folded, compared.images), run_all(unfolded, compared.images, optimise=False), expected.tolerance
    )
    graph = strip(onnxscript.optimizer.optimize(folded))
    check_graph(graph)
    actual = run_all(graph, test.images)
    agreement = measure_agreement(network.module, compared, expected, actual[chosen], outputs, graph)
    moments = _check_moments(network, graph, norms)
    mapped, map_difference = _add_map(network.module, compared, expected, graph)
    quality = measure_quality(actual, test.targets, temperature)
    properties = {
        "agreement": asdict(agreement),
        "max_fold_difference": fold_difference,
        **map_difference,
        "moments": moments,
    }
    return _CheckedGraph(mapped, agreement, quality, properties, (ACTIVATION_MAP,) if map_difference else ())


def _check_moments(network: _Network, graph: onnx.ModelProto, norms: list[Norm]) -> dict[str, Any]:
    """Check the batch norms whose statistics were recomputed, and describe all and the training images."""
    train = network.dataset.train
    recomputed = choose_layers(network.module, train, network.moved)
    images = split_evaluation(choose_images(train))
    check_moments(graph, [norm for norm in norms if norm.name in recomputed], images)
    return {
        "pixels": describe_pixels(train.images),
        "images": describe_images(train.images),
        "layers": [norm.to_json() if norm.name in network.moved else norm.to_name() for norm in norms],
    }


def _add_map(
    module: nn.Module, compared: Split, expected: Expected, graph: onnx.ModelProto
) -> tuple[onnx.ModelProto, dict[str, float]]:
    """Add the activation map if the network has one that agrees with torch; returns what the manifest records."""
    mapped = add_activation_map(graph)
    difference = None if mapped is None else measure_map_difference(module, compared.images, expected, mapped)
    return (graph, {}) if mapped is None or difference is None else (mapped, {"max_map_difference": difference})


def _choose_golden(dataset: Dataset, synthetic: bool) -> tuple[Pixels, tuple[str, ...]]:
    """Choose the golden images, uint8 (N, H, W, C), and the names of their labels; "" for synthetic images."""
    if synthetic:
        golden = draw_golden(dataset.contract, len(dataset.labels))
        return golden, ("",) * len(golden)
    chosen = choose_golden(dataset.val.targets, len(dataset.labels))
    return dataset.val.images[chosen], tuple(dataset.labels[target] for target in dataset.val.targets[chosen])


def quantize_artifact(artifact: bytes, dataset: Dataset) -> tuple[bytes, str]:
    """Make an int8 variant of an artifact, and check that it is worth publishing.

    Args:
        artifact: Content of a ``model.onnx`` that ``export_run`` made.
        dataset: The data set that it was trained on.

    Returns:
        Content of the variant, and its speed and accuracy relative to the artifact in words.

    Raises:
        NotWorthIt: The variant is not fast enough on this machine, or not accurate enough.
        ProofFailed: A check of the certificate fails.
    """
    variant = certify_int8(artifact, dataset)
    splits = [(split.images, split.targets) for split in (dataset.test, dataset.val)]
    return variant, check_gain(measure_gain(load_artifact(artifact), load_artifact(variant), splits))


def certify_int8(artifact: bytes, dataset: Dataset) -> bytes:
    """Make and certify an int8 variant of an artifact, whatever its speed and accuracy.

    Args:
        artifact: Content of a ``model.onnx`` that ``export_run`` made.
        dataset: The data set that it was trained on.

    Returns:
        Content of the variant.

    Raises:
        ProofFailed: A check of the certificate fails.
    """
    graph, manifest = open_artifact(artifact)
    assert isinstance(manifest, ClassifierManifest)  # export_run made one, with a certificate
    assert manifest.certificate is not None
    variant = strip(quantize(graph, dataset.train.images))
    check_graph(variant)
    kept = dict(manifest.properties)
    for of_float32 in ("agreement", "max_fold_difference", "max_map_difference"):
        kept.pop(of_float32, None)
    logits = run_all(variant, dataset.test.images)
    difference = float(np.abs(logits - run_all(variant, dataset.test.images, optimise=False)).max())
    quality = measure_quality(logits, dataset.test.targets, kept["temperature"])
    properties = {
        **kept,
        "quantized": "int8",
        "quality": asdict(quality),
        "moments": {**kept["moments"], "layers": []},
    }
    bare = ClassifierManifest(manifest.labels, manifest.pixels, properties)
    return certify(variant, bare, manifest.certificate.inputs, manifest.certificate.targets, difference)


def _load_network(run: Run, dataset: Dataset, mirrored: bool) -> nn.Module:
    """Load the best weights of a run with exact batch norm statistics, in eval mode."""
    exact = run.has_weights(EXACT) and not mirrored
    network = run.load_network(EXACT if exact else BEST)
    check_kept_statistics(run, network, dataset.train)
    if exact:
        return network
    network = Mirrored(network) if mirrored else network
    # The layers of a mirrored network have both views as their input.
    recompute_statistics(network, dataset.train, moved=_list_moved(run, mirrored))
    return network


def _list_moved(run: Run, mirrored: bool) -> list[str]:
    """List the batch norm layers whose statistics training changed, by their names in the exported network."""
    moved = list_moved(run.read_statistics(INITIAL), run.read_statistics(BEST))
    return [f"network.{name}" if mirrored else name for name in moved]
