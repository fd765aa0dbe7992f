"""Defects of an artifact and the check that detects each of them: the rows of the table in docs/reference/artifact.md.

Every mutation has two forms. Edited: the bytes were changed after the export, and the digest detects it. Built wrong:
digest and certificate match the wrong graph, and a gate, the replay or a check must detect it by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxscript.optimizer
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import training.export
import training.map_agreement
from evalmode.artifact.certificate import ClassifierCertificate
from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.sealing import check_digest, open_artifact, seal
from evalmode.artifact.tensors import ACTIVATION_MAP, INPUT, LOGITS
from evalmode.certification import fold, latency, quantize
from evalmode.certification.activation_map import add_activation_map, remove_activation_map
from evalmode.certification.certify import certify
from evalmode.certification.golden import check_golden, least_recalls
from evalmode.certification.verdicts import examine
from evalmode.errors import (
    ArtifactInvalid,
    DecoderMismatch,
    DigestMismatch,
    EvalmodeError,
    GoldenMismatch,
    LabelsMismatch,
    MomentsMismatch,
    NotWorthIt,
    OperatorNotAllowed,
    ReplayMismatch,
    TrainMode,
    WeightsNotFinite,
)
from evalmode.images.pixels import Resize
from evalmode.runtime.loading import load_artifact
from evalmode.runtime.session import open_cpu_session
from tests.contract import tiny_lite
from tests.training.graphs import keep_exports, keep_quantized
from training.datasets import Dataset, ReadOptions, Split
from training.errors import FoldMismatch, LabelsReordered, ModuleInTrainMode, NetworksDisagree, StatisticsReplaced
from training.export import export_run, quantize_artifact
from training.loop import prepare_network, train
from training.recipe import choose_recipe
from training.run import BEST, EXACT, Run
from training.run_config import RunConfig

Mutate = Callable[[onnx.ModelProto], None]
COLOURS = ("red", "green", "blue")


def draw_colours(count: int, seed: int) -> Split:
    """Images of noise with one brighter channel, so that only the colour distinguishes the classes."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    images = rng.integers(0, 160, (count, 8, 8, 3))
    images[np.arange(count), :, :, targets] += 60
    return Split(images.astype(np.uint8), targets.astype(np.int64))


@dataclass
class Trained:
    """A run of a network on colours, its artifact, and an int8 variant regardless of its speed-up."""

    run: Run
    dataset: Dataset
    artifact: bytes
    int8: bytes


@pytest.fixture(scope="module", autouse=True)
def _convert_once() -> Iterator[None]:
    """Convert each network once: a row changes the graph after that, or the network, which is converted again."""
    with (
        patch.object(training.export, "export_network", keep_exports()),
        patch.object(training.export, "quantize", keep_quantized()),
        patch.object(latency, "ROUNDS", 2),  # no row depends on the speed
    ):
        yield


OF_TIMM = pytest.param(
    "timm",
    marks=[pytest.mark.slow, pytest.mark.skipif(find_spec("timm") is None, reason="no evalmode[timm]")],
)
REFERENCE = pytest.param("reference", marks=pytest.mark.slow)  # each row needs an export, a replay or a session
# Rows that convert a network again, which takes seconds; for timm, the graph is changed instead.
CONVERTED_AGAIN = pytest.mark.parametrize("trained", ["compact", REFERENCE, "pretrained"], indirect=True)
PRETRAINED = pytest.mark.parametrize("trained", ["pretrained", OF_TIMM], indirect=True)


@pytest.fixture(scope="module", params=["compact", REFERENCE, "pretrained", OF_TIMM])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    if request.param in ("pretrained", "timm"):
        name = {"pretrained": tiny_lite.NETWORK, "timm": tiny_lite.OF_TIMM}[request.param]
        factors = {"pretrained": (4, 4), "timm": (4, 8)}[request.param]  # the smallest with more than one position
        splits = (draw_colours(count, seed) for seed, count in enumerate((144, 48, 48)))
        learned, val, test = (tiny_lite.enlarge(split, *factors) for split in splits)
        dataset = Dataset("colours", COLOURS, learned, val, test)
        run = Run.create(folder, RunConfig.of(dataset, ReadOptions(), tiny_lite.make_recipe(name)))
        tiny_lite.train_head(run, tiny_lite.build_network(run, learned.images[:64]), dataset)
        return export_both(run, dataset)
    dataset = Dataset("colours", COLOURS, draw_colours(384, 0), draw_colours(96, 1), draw_colours(96, 2))
    epochs = {"compact": 3, "reference": 6}[request.param]
    recipe = choose_recipe(request.param, dataset, epochs=epochs, batch_size=32)
    run = Run.create(folder, RunConfig.of(dataset, ReadOptions(), recipe))
    torch.manual_seed(0)
    network = prepare_network(run.config.build_network(), dataset.train)
    train(run, network, dataset.train, dataset.val)
    return export_both(run, dataset)


def export_both(run: Run, dataset: Dataset) -> Trained:
    """Export a run, as float32 and as int8."""
    exported = export_run(run, dataset)
    assert exported.quality.accuracy > 0.9
    with patch.object(quantize, "MIN_SPEEDUP", 0.0):
        int8, _ = quantize_artifact(exported.artifact, dataset)
    return Trained(run, dataset, exported.artifact, int8)


@pytest.fixture(params=["float32", "int8"])
def artifact(request: pytest.FixtureRequest, trained: Trained) -> bytes:
    return trained.artifact if request.param == "float32" else trained.int8


# The mutations: each changes a graph in place


def last_weights(graph: onnx.ModelProto) -> onnx.TensorProto:
    """The weights of the last convolution, or the first float32 tensor if they are quantised."""
    convolution = [node for node in graph.graph.node if node.op_type == "Conv"][-1]
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    return tensors.get(convolution.input[1]) or next(
        tensor for tensor in tensors.values() if tensor.data_type == TensorProto.FLOAT and tensor.dims
    )


def rewrite(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def flip_bit(graph: onnx.ModelProto) -> None:
    """Flip a bit in the exponent of the largest weight: a factor of 16."""
    weights = last_weights(graph)
    bits = numpy_helper.to_array(weights).view(np.uint32).copy()
    bits.flat[np.abs(numpy_helper.to_array(weights)).argmax()] ^= 1 << 25
    rewrite(weights, bits.view(np.float32))


def set_nan(graph: onnx.ModelProto) -> None:
    """Set a weight to NaN."""
    weights = last_weights(graph)
    values = numpy_helper.to_array(weights).copy()
    values.flat[0] = np.nan
    rewrite(weights, values)


def keep_dropout(graph: onnx.ModelProto) -> None:
    """Insert active dropout before the logits."""
    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "training_mode"))
    graph.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "ratio"))
    dense = next(node for node in graph.graph.node if "logits" in node.output)
    graph.graph.node.insert(
        list(graph.graph.node).index(dense),
        helper.make_node("Dropout", [dense.input[0], "ratio", "training_mode"], ["dropped"]),
    )
    dense.input[0] = "dropped"


def scale_otherwise(graph: onnx.ModelProto) -> None:
    """Scale pixels to [0, 1] instead of [-1, 1]."""
    node = next(node for node in graph.graph.node if node.op_type == "Sub")
    graph.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    division = next(node for node in graph.graph.node if node.op_type == "Div")
    graph.graph.initializer.append(numpy_helper.from_array(np.array(255, np.float32), "white"))
    division.input[1], node.input[1] = "white", "nothing"


def swap_channels(graph: onnx.ModelProto) -> None:
    """Reverse the order of the channels."""
    graph.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "order"))
    reader = next(node for node in graph.graph.node if node.input[0] == "image")
    reader.input[0] = "swapped"
    graph.graph.node.insert(0, helper.make_node("Gather", ["image", "order"], ["swapped"], axis=3))


def remove_softmax(graph: onnx.ModelProto) -> None:
    softmax = next(node for node in graph.graph.node if node.op_type == "Softmax")
    graph.graph.node.remove(softmax)
    graph.graph.node.append(helper.make_node("Identity", ["logits"], ["probabilities"]))


def change_temperature(graph: onnx.ModelProto) -> None:
    softmax = next(node for node in graph.graph.node if node.op_type == "Softmax")
    graph.graph.initializer.append(numpy_helper.from_array(np.array(3, np.float32), "other_temperature"))
    graph.graph.node.insert(
        list(graph.graph.node).index(softmax), helper.make_node("Div", ["logits", "other_temperature"], ["cooler"])
    )
    softmax.input[0] = "cooler"


def use_batch_statistics(graph: onnx.ModelProto) -> None:
    """Insert a batch norm in train mode, as the export of a module in train mode would have."""
    for name, value in (("one", 1.0), ("zero", 0.0), ("mean", 0.0), ("variance", 1.0)):
        graph.graph.initializer.append(numpy_helper.from_array(np.full(3, value, np.float32), name))
    dense = next(node for node in graph.graph.node if "logits" in node.output)
    norm = helper.make_node(
        "BatchNormalization",
        ["raw", "one", "zero", "mean", "variance"],
        ["logits", "new_mean", "new_variance"],
        training_mode=1,
    )
    dense.output[0] = "raw"
    graph.graph.node.insert(list(graph.graph.node).index(dense) + 1, norm)


def use_foreign_operator(graph: onnx.ModelProto) -> None:
    graph.graph.node.append(helper.make_node("Anything", ["logits"], ["unused"], domain="example.org"))
    graph.opset_import.append(helper.make_opsetid("example.org", 1))


def move_weights_out(graph: onnx.ModelProto) -> None:
    weights = last_weights(graph)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")


GRAPH_MUTATIONS: dict[Mutate, type[EvalmodeError]] = {  # mutation -> the error of an export with this graph
    flip_bit: NetworksDisagree,
    set_nan: WeightsNotFinite,
    keep_dropout: TrainMode,
    scale_otherwise: NetworksDisagree,
    swap_channels: NetworksDisagree,
    remove_softmax: ReplayMismatch,
    change_temperature: ReplayMismatch,
    use_batch_statistics: TrainMode,
    use_foreign_operator: OperatorNotAllowed,
    move_weights_out: OperatorNotAllowed,
}


def mutated(artifact: bytes, mutate: Mutate) -> onnx.ModelProto:
    graph = onnx.load_from_string(artifact)
    mutate(graph)
    return graph


# Edited after the export: detected by the digest


@pytest.mark.parametrize("mutate", GRAPH_MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_an_edited_graph_is_detected_by_its_digest(artifact: bytes, mutate: Mutate) -> None:
    edited = mutated(artifact, mutate).SerializeToString()
    with pytest.raises(DigestMismatch, match="it was changed or damaged since"):
        load_artifact(edited)


def test_every_check_of_an_edited_graph_runs_besides_its_digest(artifact: bytes) -> None:
    reasons = list(list_reasons(mutated(artifact, change_temperature).SerializeToString()))
    assert reasons == ["DigestMismatch", "ReplayMismatch"]


@pytest.mark.parametrize("key", ["labels", "certificate", "training", "moments", "temperature", "quality", "pixels"])
def test_edited_metadata_are_detected_by_the_digest(artifact: bytes, key: str) -> None:
    graph = onnx.load_from_string(artifact)
    entry = next(entry for entry in graph.metadata_props if entry.key == f"evalmode.{key}")
    entry.value = entry.value.replace("0", "1", 1) if key != "labels" else '["green", "red", "blue"]'
    edited = graph.SerializeToString()
    with pytest.raises(ArtifactInvalid):  # for the temperature, the contradiction to the graph is detected first
        load_artifact(edited)
    with pytest.raises(DigestMismatch):
        check_digest(edited)


def test_one_flipped_bit_anywhere_is_detected(artifact: bytes) -> None:
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(artifact), 100):
        edited = bytearray(artifact)
        edited[place] ^= 1 << rng.integers(8)
        with pytest.raises(EvalmodeError):
            load_artifact(bytes(edited))


def test_a_truncated_file_is_detected(artifact: bytes) -> None:
    for length in np.linspace(0, len(artifact) - 1, 50).astype(int):
        with pytest.raises(EvalmodeError):
            load_artifact(artifact[:length])


# Built wrong, with a matching digest and certificate


@pytest.mark.parametrize("mutate", GRAPH_MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_graph_that_is_built_wrong_is_not_published(trained: Trained, mutate: Mutate) -> None:
    optimise = onnxscript.optimizer.optimize

    def build_wrong(graph: onnx.ModelProto) -> onnx.ModelProto:
        wrong: onnx.ModelProto = optimise(graph)
        mutate(wrong)
        return wrong

    with (
        patch.object(onnxscript.optimizer, "optimize", build_wrong),
        pytest.raises(GRAPH_MUTATIONS[mutate]),
    ):
        export_run(trained.run, trained.dataset)


def test_wrong_weights_are_reported_by_layer(trained: Trained) -> None:
    optimise = onnxscript.optimizer.optimize

    def build_wrong(graph: onnx.ModelProto) -> onnx.ModelProto:
        wrong: onnx.ModelProto = optimise(graph)
        dense = next(node for node in wrong.graph.node if "logits" in node.output)
        tensors = {tensor.name: tensor for tensor in wrong.graph.initializer}
        rewrite(tensors[dense.input[1]], numpy_helper.to_array(tensors[dense.input[1]]) * 1.01)
        return wrong

    names = {"compact": "dense", "reference": r"classifier\.5"}
    name = names.get(trained.run.config.recipe.network, r"head\.dense")
    with (
        patch.object(onnxscript.optimizer, "optimize", build_wrong),
        pytest.raises(NetworksDisagree, match=f"the first layer that diverges is {name}, by"),
    ):
        export_run(trained.run, trained.dataset)


@pytest.mark.parametrize("trained", ["compact", "reference"], indirect=True)
def test_replaced_statistics_are_detected(trained: Trained) -> None:
    network = trained.run.config.build_network()
    trained.run.load_weights(network)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    norms[-1].reset_running_stats()  # as a load that skipped the buffers would leave them
    trained.run.save_weights(network, EXACT)
    try:
        with pytest.raises(MomentsMismatch, match="normalises by statistics that are not those of its input"):
            export_run(trained.run, trained.dataset)
    finally:
        (trained.run.folder / f"{EXACT}.safetensors").unlink()


@PRETRAINED
@pytest.mark.parametrize("which", [BEST, EXACT])
def test_replaced_statistics_of_a_backbone_are_detected(trained: Trained, which: str) -> None:
    """Training keeps them, so that they are not compared with the moments of the training images."""
    path = trained.run.folder / f"{which}.safetensors"
    before, network = path.read_bytes(), trained.run.load_network(which)
    *_, (name, norm) = [one for one in network.named_modules() if isinstance(one[1], nn.BatchNorm2d)]
    assert norm.running_var is not None
    norm.running_var[0] *= 1.001  # as a pass over other images in train mode might leave it
    trained.run.save_weights(network, which)
    try:
        with pytest.raises(
            StatisticsReplaced, match=f"^{re.escape(name)}: other batch norm statistics in {which}.safetensors than in"
        ):
            export_run(trained.run, trained.dataset)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("which", ["the network itself", "a child"])
def test_a_module_in_train_mode_is_named(trained: Trained, which: str) -> None:
    load = training.export._load_network
    network = trained.run.config.build_network()
    norm = next(name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d))

    def keep_training(*arguments: Any) -> nn.Module:
        network = load(*arguments)
        name = "" if which == "the network itself" else norm
        module = network.get_submodule(name)
        module.training = True
        module.train = lambda mode=True: module  # type: ignore[method-assign]
        return network

    with (
        patch.object(training.export, "_load_network", keep_training),
        pytest.raises(ModuleInTrainMode, match=f"^not in eval mode: {norm if which == 'a child' else which};"),
    ):
        export_run(trained.run, trained.dataset)


def test_a_wrong_fold_is_detected(trained: Trained) -> None:
    def forget_shift(graph, before, norm, values) -> None:
        values[norm.input[2]].CopyFrom(
            numpy_helper.from_array(np.zeros(values[norm.input[2]].dims, np.float32), norm.input[2])
        )
        fold_one(graph, before, norm, values)

    fold_one = fold._fold
    with patch.object(fold, "_fold", forget_shift), pytest.raises(FoldMismatch, match="gives other logits: by"):
        export_run(trained.run, trained.dataset)


@PRETRAINED
def test_a_wrong_fold_into_the_layer_after_it_is_detected(trained: Trained) -> None:
    def forget_mean(graph, norm, after, values) -> None:
        mean = values[norm.input[3]]
        mean.CopyFrom(numpy_helper.from_array(np.zeros(mean.dims, np.float32), norm.input[3]))
        fold_one(graph, norm, after, values)

    fold_one = fold._fold_forward
    with patch.object(fold, "_fold_forward", forget_mean), pytest.raises(FoldMismatch, match="gives other logits: by"):
        export_run(trained.run, trained.dataset)


# The activation map and the scaling of a backbone, which other networks do not have, and the pixel contract, which no
# graph states


def mirror_map(graph: onnx.ModelProto) -> None:
    """Reverse the columns of the activation map."""
    node = find_map(graph)
    for name, value in (("last", -1), ("end", np.iinfo(np.int64).min), ("columns", 3), ("step", -1)):
        graph.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    graph.graph.node.insert(
        list(graph.graph.node).index(node),
        helper.make_node("Slice", [node.input[0], "last", "end", "columns", "step"], ["mirrored"]),
    )
    node.input[0] = "mirrored"


def forget_constant(graph: onnx.ModelProto) -> None:
    """Leave the constant of each label out."""
    del find_map(graph).input[2]


def find_map(graph: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in graph.graph.node if node.output[0] == ACTIVATION_MAP)


@PRETRAINED
@pytest.mark.parametrize("mutate", [mirror_map, forget_constant], ids=lambda mutate: mutate.__name__)
def test_a_wrong_activation_map_is_detected(trained: Trained, mutate: Mutate) -> None:
    def build_wrong(graph: onnx.ModelProto) -> onnx.ModelProto:
        wrong = add_activation_map(graph)
        assert wrong is not None
        mutate(wrong)
        return wrong

    with (
        patch.object(training.export, "add_activation_map", build_wrong),
        patch.object(training.map_agreement, "find_feature_map", lambda graph: find_pooled(graph)),
        pytest.raises(NetworksDisagree, match="the activation_map of the graph is not that of torch: values differ by"),
    ):
        export_run(trained.run, trained.dataset)
    graph, manifest = open_artifact(trained.artifact)
    mutate(graph)
    sealed = seal(graph, manifest)
    with pytest.raises(ReplayMismatch, match="give another activation_map than the certificate's, or one whose mean"):
        load_artifact(sealed)


def find_pooled(graph: onnx.ModelProto) -> str:
    """The feature map, which is the input of the pooling: the last one, after those of squeeze and excitation."""
    return str([node.input[0] for node in graph.graph.node if node.op_type == "ReduceMean"][-1])


def forget_std(graph: onnx.ModelProto) -> None:
    """Do not divide by the standard deviations of the pretraining."""
    scale_channels(graph, "factor", np.ones_like)


def use_other_mean(graph: onnx.ModelProto) -> None:
    """Subtract 0.5 instead of the means of the pretraining."""
    scale_channels(graph, "offset", np.zeros_like)


def scale_channels(graph: onnx.ModelProto, which: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(one for one in graph.graph.initializer if one.name.endswith(f"scale.{which}"))
    rewrite(tensor, change(numpy_helper.to_array(tensor)))


@PRETRAINED
@pytest.mark.parametrize("mutate", [forget_std, use_other_mean], ids=lambda mutate: mutate.__name__)
def test_a_wrong_mean_or_standard_deviation_is_detected(trained: Trained, mutate: Mutate) -> None:
    optimise = onnxscript.optimizer.optimize

    def build_wrong(graph: onnx.ModelProto) -> onnx.ModelProto:
        wrong: onnx.ModelProto = optimise(graph)
        mutate(wrong)
        return wrong

    with patch.object(onnxscript.optimizer, "optimize", build_wrong), pytest.raises(NetworksDisagree):
        export_run(trained.run, trained.dataset)
    graph, manifest = open_artifact(trained.artifact)
    mutate(graph)
    sealed = seal(graph, manifest)
    with pytest.raises(ReplayMismatch, match="not the network that was certified"):
        load_artifact(sealed)


OTHER_RULES: dict[str, dict[str, Any]] = {
    "crop ratio": {"resize": Resize(crop_ratio=0.875)},
    "interpolation": {"resize": Resize(interpolation="bicubic")},
    "JPEG scaling": {"resize": Resize(jpeg_scaling=False)},
    "squash for crop": {"resize": Resize(mode="squash")},
    "letterbox for crop": {"resize": Resize(mode="letterbox")},
    "no resize for crop": {"resize": Resize(mode="none")},
    "antialias": {"resize": Resize(antialias=False)},
    "BGR for RGB": {"channel_order": "BGR"},
    "EXIF orientation": {"exif_orientation": False},
    "background": {"background": (0, 0, 0)},
    "transparency ignored": {"background": None},
}


@pytest.mark.parametrize("rules", OTHER_RULES.values(), ids=OTHER_RULES)
def test_a_wrong_pixel_contract_in_a_sealed_file_is_detected(artifact: bytes, rules: dict[str, Any]) -> None:
    graph, manifest = open_artifact(artifact)
    assert isinstance(manifest, ClassifierManifest)
    sealed = seal(graph, replace(manifest, pixels=replace(manifest.pixels, **rules)))
    with pytest.raises(DecoderMismatch, match="of the certificate"):
        load_artifact(sealed)
    if rules == OTHER_RULES["crop ratio"]:  # one is enough, since the checks that follow are the same
        assert "DecoderMismatch" in list_reasons(sealed)


class Dropping(nn.Module):
    """A network that applies dropout in every mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.network(x), 0.5)


@CONVERTED_AGAIN
def test_functional_dropout_is_detected(trained: Trained) -> None:
    load = training.export._load_network
    with (
        patch.object(training.export, "_load_network", lambda *given: Dropping(load(*given)).eval()),
        pytest.raises(TrainMode, match="dropout drops"),
    ):
        export_run(trained.run, trained.dataset)


@CONVERTED_AGAIN
def test_a_nan_weight_is_detected(trained: Trained) -> None:
    load = training.export._load_network

    def corrupt(*given: Any) -> nn.Module:
        network = load(*given)
        with torch.no_grad():
            next(layer for layer in network.modules() if isinstance(layer, nn.Linear)).weight[0, 0] = torch.nan
        return network

    with (
        patch.object(training.export, "_load_network", corrupt),
        pytest.raises(WeightsNotFinite, match=r"dense.weight|classifier\.\d.weight: 1 of"),
    ):
        export_run(trained.run, trained.dataset)


def test_permuted_labels_are_detected(trained: Trained) -> None:
    config = replace(trained.run.config, labels=("green", "blue", "red"))
    with pytest.raises(LabelsReordered, match="trained on the labels green, blue, red, the data has red, green, blue"):
        export_run(Run(trained.run.folder, config), trained.dataset)


def test_permuted_labels_in_a_sealed_file_are_detected(artifact: bytes) -> None:
    graph, manifest = open_artifact(artifact)
    assert isinstance(manifest, ClassifierManifest)
    swapped = seal(graph, replace(manifest, labels=("red", "blue", "green")))
    with pytest.raises(LabelsMismatch, match="changed or reordered since"):
        load_artifact(swapped)
    assert list(list_reasons(swapped)) == ["LabelsMismatch"]


def test_images_of_permuted_labels_do_not_certify(trained: Trained) -> None:
    """All labels are wrong, also in the certificate: only the accuracy on the golden images shows it."""
    _, manifest = open_artifact(trained.artifact)
    assert isinstance(manifest, ClassifierManifest)
    certificate = manifest.certificate
    assert isinstance(certificate, ClassifierCertificate)
    turn = dict(zip(COLOURS, ("green", "blue", "red"), strict=True))
    turned = replace(certificate, targets=tuple(turn[target] for target in certificate.targets))
    with pytest.raises(GoldenMismatch, match="0 of 16 golden images get their label"):
        check_golden(turned, COLOURS, least_recalls(manifest))


def test_the_certificate_of_another_file_is_detected(trained: Trained, artifact: bytes) -> None:
    """The certificate of a network with almost the same outputs."""
    graph, _ = open_artifact(artifact)
    other = remove_activation_map(open_artifact(trained.artifact)[0])  # its weights are no part of the logits
    flip_bit(other)
    manifest = open_artifact(certify_own_outputs(other, trained))[1]
    with pytest.raises(ReplayMismatch, match="not the network that was certified"):
        load_artifact(seal(graph, manifest))
    assert "ReplayMismatch" in list_reasons(seal(graph, manifest))


def certify_own_outputs(graph: onnx.ModelProto, trained: Trained) -> bytes:
    """Certify a graph with its own outputs."""
    manifest = ClassifierManifest(COLOURS, trained.dataset.contract, {"temperature": read_temperature(trained)})
    golden = {INPUT: trained.dataset.val.images[:16]}
    return certify(graph, manifest, golden, ("",) * 16, 0.0)


def read_temperature(trained: Trained) -> float:
    temperature: float = open_artifact(trained.artifact)[1].properties["temperature"]
    return temperature


def list_reasons(artifact: bytes) -> Iterator[str]:
    return (verdict.reason for verdict in examine(artifact) if verdict.reason)


def test_a_correct_export_passes_every_check(artifact: bytes) -> None:
    assert list(list_reasons(artifact)) == []
    findings = {verdict.check: verdict.finding for verdict in examine(artifact)}
    assert findings["batches"] == "at every position of batches of 1 to 64, on 1 and 2 threads: the same bits"
    assert load_artifact(artifact).batch_invariant


INT8_MUTATIONS: dict[Mutate, tuple[type[EvalmodeError], ...]] = {  # mutation -> the errors for an int8 graph
    flip_bit: (NotWorthIt,),
    set_nan: (WeightsNotFinite,),
    keep_dropout: (TrainMode,),
    scale_otherwise: (NotWorthIt,),
    swap_channels: (NotWorthIt,),
    remove_softmax: (ReplayMismatch,),
    change_temperature: (ReplayMismatch,),
    use_batch_statistics: (TrainMode,),
    use_foreign_operator: (OperatorNotAllowed,),
    move_weights_out: (OperatorNotAllowed,),
}


@pytest.mark.parametrize("mutate", INT8_MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_an_int8_graph_that_is_built_wrong_is_not_published(trained: Trained, mutate: Mutate) -> None:
    quantize_once = training.export.quantize  # type: ignore[attr-defined]  # as the fixture of this module patches it

    def build_wrong(*arguments: Any) -> onnx.ModelProto:
        wrong = quantize_once(*arguments)
        mutate(wrong)
        return wrong

    with (
        patch.object(training.export, "quantize", build_wrong),
        patch.object(quantize, "MIN_SPEEDUP", 0.0),  # compare the accuracy alone
        pytest.raises(INT8_MUTATIONS[mutate]),
    ):
        quantize_artifact(trained.artifact, trained.dataset)


def test_an_int8_graph_has_the_same_bits_in_every_batch(trained: Trained) -> None:
    model = load_artifact(trained.int8).as_classifier()
    assert (model.batch_invariant, model.max_batch) == (True, 64)
    graph, manifest = open_artifact(trained.int8)
    assert "QuantizeLinear" in {node.op_type for node in graph.graph.node}
    assert manifest.properties["quantized"] == "int8"
    right = model.classify(trained.dataset.test.images)[1].argmax(1) == trained.dataset.test.targets
    assert manifest.properties["quality"]["accuracy"] == right.mean()
    assert "agreement" not in manifest.properties  # torch did not run this graph
    assert manifest.labels == COLOURS


def test_int8_ranges_are_independent_of_the_order_of_images(trained: Trained) -> None:
    graph, _ = open_artifact(trained.artifact)
    images = trained.dataset.train.images
    black_first = np.concatenate([np.zeros((quantize.CALIBRATION * 2, *images.shape[1:]), np.uint8), images])
    variant = quantize.quantize(graph, black_first)
    expected, actual = (
        open_cpu_session(one.SerializeToString()).run([LOGITS], {INPUT: images})[0] for one in (graph, variant)
    )
    assert np.sqrt(np.mean((actual - expected) ** 2)) < 0.2 * expected.std()
