"""The export: contents and metadata of the artifact, equal bytes in every process, and refusals."""

from __future__ import annotations

import dataclasses
import getpass
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import training
from evalmode.artifact.manifest import DIGEST, ClassifierManifest
from evalmode.artifact.sealing import seal
from evalmode.artifact.tensors import softmax
from evalmode.certification.metrics import CrossValidated, calibration_error
from evalmode.certification.runs import run_all
from evalmode.images.pixels import PixelContract
from evalmode.runtime.loading import load_model
from evalmode.runtime.model import ImageClassifier
from training.agreement import Agreement, check_fold, expect_answers, measure_agreement
from training.datasets import Dataset, ReadOptions, Split
from training.errors import ExportRefused, FoldMismatch, ModuleInTrainMode, RunError
from training.evaluation import evaluate, predict_logits
from training.export import _load_network, export_run
from training.loop import prepare_network, train
from training.networks import scale_pixels
from training.onnx_export import Deployed, export_graph
from training.recipe import choose_recipe
from training.review import Review
from training.run import Run
from training.run_config import RunConfig
from training.temperature import choose_temperature, fit_temperature

CHECKOUT = Path(training.__file__).parents[1]
CROSS_VALIDATED = CrossValidated(0.875, (0.75, 0.95), 240, 5)


@pytest.fixture(scope="module")
def graph(exported) -> onnx.ModelProto:
    return onnx.load_from_string(exported.artifact)


# Inputs and outputs


def test_the_artifact_accepts_uint8_pixels_of_any_number_of_images(exported) -> None:
    (image,) = exported.model.session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 8, 8, 1])


def test_the_artifact_gives_probabilities_and_logits(exported) -> None:
    outputs = [(output.name, output.type, output.shape) for output in exported.model.session.get_outputs()]
    assert outputs == [
        ("probabilities", "tensor(float)", ["batch", 10]),
        ("logits", "tensor(float)", ["batch", 10]),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_the_artifact_agrees_with_torch_at_any_batch_size(exported, digits: Dataset, size: int) -> None:
    images = Split(digits.test.images[:size], digits.test.targets[:size])
    _, logits = exported.model.classify(images.images)
    expected = predict_logits(exported.load_network(), images).numpy()
    assert logits.shape == (size, 10)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_probabilities_are_the_softmax_of_the_logits_over_the_temperature(exported, digits: Dataset) -> None:
    probabilities, logits = exported.model.classify(digits.test.images)
    powers = np.exp(logits.astype(np.float64) / exported.quality.temperature)
    np.testing.assert_allclose(probabilities, powers / powers.sum(1, keepdims=True), rtol=0, atol=1e-6)


# Metadata and contents of the file


def test_the_metadata_hold_the_labels_and_the_pixel_contract(exported) -> None:
    manifest = exported.model.manifest
    assert manifest.labels == tuple("0123456789")
    assert manifest.pixels == PixelContract(8, 8, 1)


def test_the_metadata_hold_the_network_and_how_it_was_trained(exported, digits: Dataset) -> None:
    properties = exported.model.manifest.properties
    assert properties["network"] == "reference"
    assert properties["training"] == {
        "width": 1.0,
        "epochs": 8,
        "batch_size": 32,
        "optimizer": "adam",
        "learning_rate": 5e-4,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "dropout": 0.5,
        "mirror": False,
        "shift": 0,
        "balance": False,
        "fine_tune": 0,
        "views": 1,
        "seed": 0,
        "data_digest": digits.digest(),
    }


def test_the_metadata_hold_the_agreement_that_was_measured(exported) -> None:
    assert exported.model.manifest.properties["agreement"] == asdict(exported.agreement)


def test_the_file_has_no_external_weights(graph: onnx.ModelProto, exported, tmp_path: Path) -> None:
    assert not [t.name for t in graph.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert [path.name for path in exported.path.parent.iterdir() if path.is_file()] == ["model.onnx"]
    onnxruntime.InferenceSession(exported.artifact)  # from bytes: external weights would not be found


def test_the_file_is_valid_onnx_of_opset_20(graph: onnx.ModelProto) -> None:
    onnx.checker.check_model(graph, full_check=True)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 20)]


def test_the_file_names_no_path_user_host_or_source(exported) -> None:
    artifact = onnx.load_from_string(exported.artifact)
    for weights in artifact.graph.initializer:  # random bytes can contain short names by chance
        weights.ClearField("raw_data")
    text = artifact.SerializeToString().decode("latin-1")
    for place in (CHECKOUT, Path.home(), tempfile.gettempdir(), exported.run.folder, Path(sys.prefix), "/home"):
        assert str(place) not in text
    for name in (getpass.getuser(), socket.gethostname()):
        assert not re.search(rf"\b{re.escape(name)}\b", text)
    for trace in (".py", "stack_trace", "Traceback", "pkg.torch", "/usr/lib"):
        assert trace not in text


def test_no_part_of_the_graph_has_notes_of_the_exporter(graph: onnx.ModelProto) -> None:
    parts: list[Any] = [graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output]
    parts += [*graph.graph.value_info, *graph.graph.initializer]
    assert not [part for part in parts if part.doc_string or len(part.metadata_props)]
    standard = {"names", "task"}
    assert all(fact.key.startswith(("evalmode.", "Image.")) or fact.key in standard for fact in graph.metadata_props)


def test_another_process_in_another_folder_exports_the_same_bytes(exported, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
import torch
from training.agreement import Agreement, check_fold, expect_answers, measure_agreement
from training.datasets import load_dataset
from training.export import export_run
from training.run import Run
torch.set_num_threads(1)
Path("again.onnx").write_bytes(export_run(Run.open(Path(sys.argv[1])), load_dataset("digits")).artifact)
"""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", program, exported.run.folder], cwd=tmp_path, env=environment, check=True, timeout=300
    )
    assert (tmp_path / "again.onnx").read_bytes() == exported.artifact


# Agreement


def agree(network: nn.Module, graph: onnx.ModelProto, split: Split) -> Agreement:
    """The agreement of a network and a graph on a split."""
    expected = expect_answers(network.eval(), split)
    return measure_agreement(network, split, expected, run_all(graph, split.images), {}, graph)


def test_agreement_is_measured_on_the_whole_test_set(exported, digits: Dataset) -> None:
    agreement = exported.agreement
    assert agreement.images == len(digits.test) == 359
    assert 0 <= agreement.max_logit_difference < 1e-5
    assert (agreement.near_ties, agreement.changed) == (0, 0)
    assert exported.quality.images == 359
    assert exported.quality.accuracy == evaluate(exported.load_network(), digits.test)[0]
    assert exported.quality.accuracy > 0.9


def test_agreement_is_measured_on_every_image_of_several_batches(
    exported, graph: onnx.ModelProto, digits: Dataset
) -> None:
    assert agree(exported.load_network(), graph, digits.train).images == 1295  # more than two batches


def test_the_difference_is_the_maximum_over_logits_and_images(
    exported, graph: onnx.ModelProto, digits: Dataset
) -> None:
    network = exported.load_network()
    with torch.no_grad():
        network.classifier[-1].bias[3] += 5e-5
    agreement = agree(network, graph, digits.test)
    assert agreement.max_logit_difference == pytest.approx(5e-5, rel=0.2)


def test_weights_that_differ_from_the_artifacts_are_refused(exported, graph: onnx.ModelProto, digits: Dataset) -> None:
    network = exported.load_network()
    with torch.no_grad():
        network.classifier[-1].bias[3] += 2e-4
    with pytest.raises(ExportRefused, match=r"logits differ by 2\.0\de-04 \(limit 0\.00012\).* nothing was published"):
        agree(network, graph, digits.test)


def test_one_image_that_disagrees_is_enough_to_refuse(exported, graph: onnx.ModelProto, digits: Dataset) -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = exported.load_network()
            self.strange = scale_pixels(torch.from_numpy(digits.test.images[358:]))[0]

        def forward(self, x: Tensor) -> Tensor:
            wrong = (x == self.strange).flatten(1).all(1)
            return self.network(x) + wrong[:, None] * torch.eye(10)[3]

    with pytest.raises(ExportRefused, match=r"logits differ by 1\.00e\+00"):
        agree(Strange(), graph, digits.test)


# Tolerances relative to the logits


def rescale(graph: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same graph with one more node, which multiplies the logits by a factor."""
    scaled = onnx.ModelProto()
    scaled.CopyFrom(graph)
    for node in scaled.graph.node:
        for names in (node.input, node.output):
            names[:] = ["raw" if name == "logits" else name for name in names]
    scaled.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    scaled.graph.node.append(helper.make_node("Mul", ["raw", "factor"], ["logits"]))
    return scaled


class Rescaled(nn.Module):
    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x) * self.factor
        return logits


def use_other_eps(network: Any) -> None:
    network.features[1].eps = 2e-3


def change_one_weight(network: Any) -> None:
    with torch.no_grad():
        network.classifier[-1].weight[3, 0] += 0.01


def use_batch_statistics(network: Any) -> None:
    network.features[4].training = True


def keep_dropout(network: Any) -> None:
    network.classifier[4].training = True


def swap_filters(network: Any) -> None:
    with torch.no_grad():
        network.features[0].weight.copy_(network.features[0].weight.flip(0))


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    "fault", [None, use_other_eps, change_one_weight, use_batch_statistics, keep_dropout, swap_filters]
)
def test_logits_of_any_size_agree_and_a_fault_is_caught_at_any_size(
    exported, graph: onnx.ModelProto, digits: Dataset, factor: float, fault: Callable[[nn.Module], None] | None
) -> None:
    unchanged, other = (Rescaled(exported.load_network(), factor).eval() for _ in range(2))
    scaled, expected = rescale(graph, factor), expect_answers(unchanged, digits.test)
    measure_agreement(unchanged, digits.test, expected, run_all(scaled, digits.test.images), {}, scaled)
    assert expected.tolerance < 2e-5 * np.abs(expected.logits).max() or factor < 1
    if fault:
        fault(other.network)
        with torch.no_grad():
            wrong = other(scale_pixels(torch.from_numpy(digits.test.images))).numpy()
        with pytest.raises(ExportRefused, match="logits differ by"):
            measure_agreement(unchanged, digits.test, expected, wrong, {}, scaled)
        with pytest.raises(FoldMismatch):
            check_fold(wrong, expected.logits, expected.tolerance)


def test_rounding_of_float32_is_within_the_tolerance(exported, digits: Dataset) -> None:
    """An ill-conditioned network: large values cancel, as with many layers or black and white images."""

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.large = exported.load_network(), 1e4

        def forward(self, x: Tensor) -> Tensor:
            return (self.network(x) / 3 + self.large - self.large) * 3

    well = expect_answers(exported.load_network().eval(), digits.test)
    ill = expect_answers(Cancelling().eval(), digits.test)
    rounded = np.abs(well.logits - ill.logits).max()
    assert well.tolerance < rounded < ill.tolerance < 1e-2 * np.abs(ill.logits).max()


def test_random_outputs_do_not_widen_the_tolerance(exported, digits: Dataset) -> None:
    network = exported.load_network().eval()
    network.classifier[4].train()
    expected = expect_answers(network, digits.test)
    assert expected.tolerance <= 1e-3 * np.abs(expected.logits).max()


# Ties and NaN, with networks whose logits are constants

THREE = Split(np.zeros((3, 1, 1, 1), np.uint8), np.array([0, 1, 1]))


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def constant_graph(*logits: float) -> onnx.ModelProto:
    """An ONNX graph with the outputs of ``Constant``."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "constant"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    constants: dict[str, np.ndarray] = {
        "axes": np.array([1, 2], np.int64),
        "zero": np.array(0, np.float32),
        "constant": np.array(logits, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ("batch", 1, 1, 1))],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", len(logits)))
            for name in ("probabilities", "logits")
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_tied_labels_are_counted_and_not_refused() -> None:
    agreement = agree(Constant(2, 5, 5), constant_graph(2, 5, 5), THREE)
    assert (agreement.near_ties, agreement.changed) == (3, 0)


def test_only_ties_of_the_best_two_labels_are_counted() -> None:
    agreement = agree(Constant(2, 2, 5), constant_graph(2, 2, 5), THREE)
    assert agreement.near_ties == 0


def test_the_label_of_a_near_tie_may_change() -> None:
    agreement = agree(Constant(0, 4e-5, -1), constant_graph(4e-5, 0, -1), THREE)
    assert (agreement.near_ties, agreement.changed) == (3, 3)
    assert agreement.max_logit_difference == pytest.approx(4e-5)


def test_a_label_that_changes_without_a_near_tie_is_refused_even_if_the_logits_are_close() -> None:
    with pytest.raises(ExportRefused, match=r"logits differ by 8\.00e-05 .* 3 of 3 labels change"):
        agree(Constant(0, 1.5e-4), constant_graph(8e-5, 7e-5), THREE)


@pytest.mark.parametrize(("torch_value", "onnx_value"), [(math.nan, math.nan), (math.nan, 1.0), (1.0, math.nan)])
def test_logits_that_are_nan_are_refused(torch_value: float, onnx_value: float) -> None:
    with pytest.raises(ExportRefused, match="logits differ by nan"):
        agree(Constant(torch_value, 0.0), constant_graph(onnx_value, 0.0), THREE)


class ActivatedNorm(nn.BatchNorm2d):
    """A batch norm that contains its activation, which works in place, as those of timm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(super().forward(x))
        return activated


def test_the_layer_that_diverges_is_named_behind_layers_that_contain_others() -> None:
    torch.manual_seed(0)
    shared = nn.ReLU(inplace=True)  # called twice: the graph names one of its outputs
    layers = [nn.Conv2d(1, 4, 3), shared, ActivatedNorm(4), nn.Conv2d(4, 4, 3), shared, nn.Flatten(), nn.Linear(64, 3)]
    network = nn.Sequential(*layers).eval()
    graph, outputs = export_graph(Deployed(network), (8, 8, 1))
    (weights,) = [tensor for tensor in graph.graph.initializer if tensor.name == "network.6.weight"]
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1.1), weights.name))
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)).astype(np.uint8)
    test = Split(images, np.zeros(8, np.int64))
    with pytest.raises(ExportRefused, match="the first layer that diverges is 6, by"):
        measure_agreement(network, test, expect_answers(network, test), run_all(graph, images), outputs, graph)


# Eval mode


def test_a_part_of_the_network_in_train_mode_is_refused_by_its_name(exported) -> None:
    network = exported.load_network()
    network.classifier[4].train()
    assert not network.training
    with pytest.raises(
        ModuleInTrainMode, match=r"^not in eval mode: classifier\.4; batch norm and dropout would behave"
    ):
        export_graph(Deployed(network), (8, 8, 1))


def test_a_whole_network_in_train_mode_is_refused(exported) -> None:
    with pytest.raises(ModuleInTrainMode, match="not in eval mode: the network itself, features, "):
        export_graph(Deployed(exported.load_network().train()), (8, 8, 1))


def test_a_refused_export_has_the_exit_code_of_a_failed_check() -> None:
    assert ExportRefused.exit_code == 1


def test_a_run_without_weights_is_refused(exported, digits: Dataset, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", exported.run.config)
    with pytest.raises(RunError, match=r"best\.safetensors cannot be loaded"):
        export_run(run, digits)


# Sealing


def test_sealing_replaces_only_the_metadata(graph: onnx.ModelProto, exported) -> None:
    manifest = ClassifierManifest(tuple("abcdefghij"), PixelContract(8, 8, 1), {"network": "other"})
    resealed = onnx.load_from_string(seal(graph, manifest))
    metadata = {fact.key: fact.value for fact in resealed.metadata_props}
    assert len(metadata.pop(DIGEST)) == 64
    assert metadata == manifest.to_metadata()
    assert resealed.graph == graph.graph


def test_sealing_does_not_change_its_argument(graph: onnx.ModelProto) -> None:
    before = graph.SerializeToString(deterministic=True)
    seal(graph, ClassifierManifest(("a",), PixelContract(8, 8, 1)))
    assert graph.SerializeToString(deterministic=True) == before


def test_sealing_refuses_a_graph_that_is_not_valid(graph: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        seal(broken, ClassifierManifest(("a",), PixelContract(8, 8, 1)))


# Mirrored artifacts


@pytest.fixture(scope="module")
def mirrored(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ImageClassifier]:
    """One epoch of the compact network, exported with both views, and with a review of the data."""
    folder = tmp_path_factory.mktemp("mirrored")
    config = RunConfig.of(digits, ReadOptions(), choose_recipe("compact", digits, epochs=1))
    run = Run.create(folder / "run", config)
    torch.manual_seed(0)
    network = prepare_network(config.build_network(), digits.train)
    train(run, network, digits.train, digits.val)
    Review(CROSS_VALIDATED, (), (), 0).save(run.folder)
    (folder / "model.onnx").write_bytes(export_run(run, digits, mirrored=True).artifact)
    return run, load_model(folder / "model.onnx").as_classifier()


def test_a_mirrored_artifact_returns_the_mean_logits_of_both_views(
    mirrored: tuple[Run, ImageClassifier], digits: Dataset
) -> None:
    run, model = mirrored
    network = _load_network(run, digits, mirrored=True).network
    assert isinstance(network, nn.Module)
    other_view = Split(digits.test.images[:, :, ::-1].copy(), digits.test.targets)
    expected = (predict_logits(network, digits.test) + predict_logits(network, other_view)) / 2
    assert np.abs(model.classify(digits.test.images)[1] - expected.numpy()).max() < 1e-4
    assert np.abs(model.classify(digits.test.images)[1] - predict_logits(network, digits.test).numpy()).max() > 0.1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_a_mirrored_artifact_returns_the_same_bits_for_an_image_and_its_mirror_image(
    mirrored: tuple[Run, ImageClassifier], digits: Dataset, size: int
) -> None:
    images = digits.test.images[:size]
    for output, mirrored_output in zip(
        mirrored[1].classify(images), mirrored[1].classify(images[:, :, ::-1].copy()), strict=True
    ):
        assert output.tobytes() == mirrored_output.tobytes()


def test_the_metadata_hold_whether_the_artifact_is_mirrored(mirrored: tuple[Run, ImageClassifier], exported) -> None:
    assert mirrored[1].manifest.properties["mirrored"] is True
    assert exported.model.manifest.properties["mirrored"] is False


def test_the_metadata_hold_the_cross_validated_accuracy_of_the_run(
    mirrored: tuple[Run, ImageClassifier], exported
) -> None:
    recorded = mirrored[1].manifest.properties["quality"]["cross_validated"]
    assert recorded == {"accuracy": 0.875, "interval": [0.75, 0.95], "images": 240, "folds": 5}
    assert exported.model.manifest.properties["quality"]["cross_validated"] is None


# Temperature


def draw_answers(count: int, right: float, logit: float) -> tuple[Tensor, np.ndarray]:
    """Logits 0 and ``logit`` for every image, and random targets of which a share ``right`` is label 1."""
    logits = torch.tensor([0.0, logit]).repeat(count, 1)
    return logits, (np.random.default_rng(0).random(count) < right).astype(np.int64)


def test_a_temperature_is_used_if_it_lowers_the_calibration_error_on_other_images() -> None:
    temperature, reason = choose_temperature(*draw_answers(1000, 0.73, 3.0))  # 1 / (1 + exp(-1)) is 0.73
    assert temperature == pytest.approx(3.0, rel=0.2)
    assert reason.startswith("a temperature lowers the calibration error from ")


def test_a_temperature_is_not_used_if_it_helps_only_on_the_images_it_was_fitted_on() -> None:
    logits, targets = draw_answers(25, 0.731, 1.0)
    fitted = fit_temperature(logits, targets)
    errors = [calibration_error(softmax(logits.numpy() / np.float32(one)), targets) for one in (fitted, 1.0)]
    assert errors[0] < errors[1]
    temperature, reason = choose_temperature(logits, targets)
    assert temperature == 1.0
    assert re.fullmatch(
        r"no temperature is used: it would change the calibration error from 0\.\d+ to 0\.\d+ on "
        "validation images it was not fitted on",
        reason,
    )


def test_the_reason_for_not_fitting_a_temperature_is_returned() -> None:
    logits, targets = draw_answers(50, 1.0, 1.0)
    assert choose_temperature(logits, targets) == (
        1.0,
        "no temperature is fitted, since every validation image is classified right. The probabilities are not "
        "calibrated: no threshold should rely on them before there are more validation images",
    )
    temperature, reason = choose_temperature(logits * math.nan, targets)
    assert (temperature, reason.partition(":")[0]) == (1.0, "no temperature is fitted")


def test_test_images_do_not_affect_the_temperature(exported, digits: Dataset) -> None:
    wrong = Split(digits.test.images, np.roll(digits.test.targets, 1))  # another calibration
    again = export_run(exported.run, dataclasses.replace(digits, test=wrong), synthetic=True)
    assert again.quality.temperature == exported.quality.temperature != 1.0
    assert again.temperature_reason
