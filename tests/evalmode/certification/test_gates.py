"""A network that fails each check that runs it; contract/test_mutations.py tests the other checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from evalmode.artifact.certificate import ClassifierCertificate
from evalmode.artifact.manifest import ClassifierManifest
from evalmode.artifact.tensors import INPUT, LOGITS
from evalmode.certification.certify import certify, draw_golden
from evalmode.certification.golden import check_golden
from evalmode.certification.graph import check_eval_mode, check_finite
from evalmode.certification.metrics import binomial_tail, calibration_error, describe_pixels, mcnemar, measure_quality
from evalmode.certification.runs import Probe, check_repeats, open_runs, run_all
from evalmode.errors import (
    BatchMismatch,
    GoldenMismatch,
    NotRepeatable,
    OutputsMismatch,
    TrainMode,
    WeightsNotFinite,
)
from evalmode.images.pixels import PixelContract
from tests.conftest import COLOURS, colour_graph

CONTRACT = PixelContract(4, 4, 3)
GOLDEN = draw_golden(CONTRACT, 3)


def with_node(operator: str, *inputs: str, **attributes: Any) -> onnx.ModelProto:
    """The graph of colours with an operator between its division and its logits."""
    graph = colour_graph()
    division = next(node for node in graph.graph.node if LOGITS in node.output)
    division.output[0] = "raw"
    node = helper.make_node(operator, ["raw", *inputs], [LOGITS], **attributes)
    graph.graph.node.insert(list(graph.graph.node).index(division) + 1, node)
    return graph


def add_constant(graph: onnx.ModelProto, name: str, value: object) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))


def certify_colours(graph: onnx.ModelProto, labels: tuple[str, ...] = COLOURS) -> bytes:
    return certify(graph, ClassifierManifest(labels, CONTRACT), {INPUT: GOLDEN}, ("",) * len(GOLDEN), difference=0.0)


def test_the_unchanged_network_passes() -> None:
    certify_colours(colour_graph())


def test_a_random_operator_is_detected_by_repeated_runs_and_by_the_graph_check() -> None:
    graph = with_node("Add", "noise")
    graph.graph.node.insert(0, helper.make_node("RandomNormal", [], ["noise"], shape=[1, 3], scale=0.1))
    with pytest.raises(NotRepeatable, match=r"the same 16 inputs give other .* the second time, by up to"):
        check_repeats(Probe(open_runs(graph.SerializeToString()), {INPUT: GOLDEN}, 3, relative=False))
    with pytest.raises(TrainMode, match="RandomNormal draws at random"):
        certify_colours(graph)


def test_images_that_influence_each_other_are_detected() -> None:
    graph = with_node("Sub", "mean")
    place = next(i for i, node in enumerate(graph.graph.node) if LOGITS in node.output)
    graph.graph.node.insert(place, helper.make_node("ReduceMean", ["raw", "first"], ["mean"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    with pytest.raises(BatchMismatch, match=r"in a batch of 2 on 1 threads .* inputs of a batch influence each other"):
        certify_colours(graph)


def test_batch_norm_with_batch_statistics_is_not_eval_mode() -> None:
    """The form in which torch exports a batch norm without running statistics."""
    graph = with_node("BatchNormalization", "one", "zero", "statistics", "statistics")
    for name, value in (("one", [1.0] * 3), ("zero", [0.0] * 3)):
        add_constant(graph, name, value)
    place = next(i for i, node in enumerate(graph.graph.node) if LOGITS in node.output)
    graph.graph.node.insert(place, helper.make_node("ReduceMean", ["raw", "first"], ["statistics"], keepdims=0))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    with pytest.raises(TrainMode, match="batch norm uses the statistics of its batch"):
        check_eval_mode(graph)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_weight_is_detected(value: float) -> None:
    graph = with_node("Mul", "factor")
    add_constant(graph, "factor", [1.0, value, 1.0])
    with pytest.raises(WeightsNotFinite, match="factor: 1 of 3 values are NaN or infinite"):
        certify_colours(graph)


def test_a_negative_variance_is_detected() -> None:
    graph = with_node("BatchNormalization", "one", "zero", "zero", "variance")
    for name, value in (("one", [1.0] * 3), ("zero", [0.0] * 3), ("variance", [1.0, -0.1, 1.0])):
        add_constant(graph, name, value)
    with pytest.raises(WeightsNotFinite, match=r"variance: a variance below 0 \(-0.1\)"):
        check_finite(graph)


def test_more_labels_than_outputs_are_detected() -> None:
    with pytest.raises(OutputsMismatch, match=r"4 labels but probabilities of shape \(16, 3\) for 16 inputs"):
        certify_colours(colour_graph(), (*COLOURS, "violet"))


def test_non_finite_logits_are_detected() -> None:
    graph = with_node("Div", "divisor")
    add_constant(graph, "divisor", 0.0)
    with pytest.raises(OutputsMismatch, match=r"(logits|probabilities): values are NaN or infinite"):
        certify_colours(graph)


def test_a_network_with_a_fixed_batch_of_1_is_rejected() -> None:
    graph = colour_graph()
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(OutputsMismatch, match="16 inputs do not run as one batch"):
        certify_colours(graph)
    with pytest.raises(OutputsMismatch, match="onnxruntime does not run it in batches of 64"):
        run_all(graph, GOLDEN)


# Golden labels of imbalanced data


def make_certificate(answers: list[int], targets: list[int]) -> ClassifierCertificate:
    logits = np.eye(2, dtype=np.float32)[answers]
    wanted, given = (tuple("ab"[index] for index in indices) for indices in (targets, answers))
    return ClassifierCertificate({INPUT: GOLDEN}, {LOGITS: logits}, 1e-4, True, wanted, given, 1.0, ())


def test_golden_images_of_a_label_with_a_low_recall_may_be_wrong() -> None:
    """99% of the images have label a, which is always predicted: the accuracy is 99%, on the golden images 50%."""
    targets = np.repeat([0, 1], [990, 10])
    quality = measure_quality(np.eye(2, dtype=np.float32)[np.zeros(1000, int)], targets, 1.0)
    assert quality.accuracy == 0.99
    often, never = quality.least_recalls
    assert often == pytest.approx(0.996, abs=1e-3)
    assert never == 0
    finding = check_golden(make_certificate([0] * 16, [0, 1] * 8), ("a", "b"), quality.least_recalls)
    assert finding == "8 of 16 golden images get their label"


def test_wrong_golden_labels_of_an_accurate_network_are_rejected() -> None:
    with pytest.raises(GoldenMismatch, match=r"8 of 16 golden images get their label, while .* at least 0\.97"):
        check_golden(make_certificate([0] * 16, [0, 1] * 8), ("a", "b"), (0.99, 0.95))


# Metrics, compared with known values


def test_mcnemar_has_known_values() -> None:
    assert mcnemar(7, 3) == pytest.approx(2 * sum((1, 10, 45, 120)) / 2**10)
    assert mcnemar(1300, 1200) == pytest.approx(0.0477, abs=1e-4)
    assert mcnemar(5, 5) == mcnemar(0, 0) == 1.0


def test_binomial_tail_has_known_values() -> None:
    assert binomial_tail(1, 3, 0.25) == pytest.approx((27 + 27) / 64)
    assert binomial_tail(3, 3, 0.25) == binomial_tail(0, 5, 0.0) == 1.0
    assert binomial_tail(2, 3, 1.0) == 0.0


def test_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    """Two bins: probability 0.8 with 1 of 2 correct; probability 0.6 with 2 of 2 correct."""
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]])
    assert calibration_error(probabilities, np.array([0, 1, 1, 1])) == pytest.approx((0.3 + 0.4) / 2)


def test_pixels_are_described_by_channel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3)).astype(np.uint8)
    statistics = describe_pixels(images)
    np.testing.assert_allclose(statistics["mean"], images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(statistics["std"], images.std((0, 1, 2)), rtol=1e-9)
