"""Every gate that running shows, tripped by a network that trips it; contract/test_mutations.py has the others."""

from __future__ import annotations

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


def with_node(operator: str, *inputs: str, **attributes: object) -> onnx.ModelProto:
    """The graph of colours with one operator between its division and its logits."""
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


def test_the_network_that_the_others_are_made_of_passes() -> None:
    certify_colours(colour_graph())


def test_a_random_operator_that_the_graph_check_does_not_know_would_not_repeat() -> None:
    graph = with_node("Add", "noise")
    graph.graph.node.insert(0, helper.make_node("RandomNormal", [], ["noise"], shape=[1, 3], scale=0.1))
    with pytest.raises(NotRepeatable, match=r"the same 16 inputs give other .* the second time, by up to"):
        check_repeats(Probe(open_runs(graph.SerializeToString()), {INPUT: GOLDEN}, 3, relative=False))
    with pytest.raises(TrainMode, match="RandomNormal draws at random"):
        certify_colours(graph)


def test_images_that_influence_each_other_are_noticed() -> None:
    graph = with_node("Sub", "mean")
    place = next(i for i, node in enumerate(graph.graph.node) if LOGITS in node.output)
    graph.graph.node.insert(place, helper.make_node("ReduceMean", ["raw", "first"], ["mean"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    with pytest.raises(BatchMismatch, match=r"in a batch of 2 on 1 threads .* inputs of a batch influence each other"):
        certify_colours(graph)


def test_batch_norm_by_computed_statistics_is_not_eval_mode() -> None:
    """What torch exports of a batch norm that keeps no statistics."""
    graph = with_node("BatchNormalization", "one", "zero", "seen", "seen")
    for name, value in (("one", [1.0] * 3), ("zero", [0.0] * 3)):
        add_constant(graph, name, value)
    place = next(i for i, node in enumerate(graph.graph.node) if LOGITS in node.output)
    graph.graph.node.insert(place, helper.make_node("ReduceMean", ["raw", "first"], ["seen"], keepdims=0))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    with pytest.raises(TrainMode, match="batch norm uses the statistics of its batch"):
        check_eval_mode(graph)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_noticed(wrong: float) -> None:
    graph = with_node("Mul", "factor")
    add_constant(graph, "factor", [1.0, wrong, 1.0])
    with pytest.raises(WeightsNotFinite, match="factor: 1 of 3 values are NaN or infinite"):
        certify_colours(graph)


def test_a_variance_below_0_is_noticed() -> None:
    graph = with_node("BatchNormalization", "one", "zero", "zero", "variance")
    for name, value in (("one", [1.0] * 3), ("zero", [0.0] * 3), ("variance", [1.0, -0.1, 1.0])):
        add_constant(graph, name, value)
    with pytest.raises(WeightsNotFinite, match=r"variance: a variance below 0 \(-0.1\)"):
        check_finite(graph)


def test_more_labels_than_outputs_are_noticed() -> None:
    with pytest.raises(OutputsMismatch, match=r"4 labels but probabilities of shape \(16, 3\) for 16 inputs"):
        certify_colours(colour_graph(), (*COLOURS, "violet"))


def test_logits_that_are_no_numbers_are_noticed() -> None:
    graph = with_node("Div", "nothing")
    add_constant(graph, "nothing", 0.0)
    with pytest.raises(OutputsMismatch, match=r"(logits|probabilities): values are NaN or infinite"):
        certify_colours(graph)


def test_a_network_for_one_image_at_a_time_is_told() -> None:
    graph = colour_graph()
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(OutputsMismatch, match="16 inputs do not run as one batch"):
        certify_colours(graph)
    with pytest.raises(OutputsMismatch, match="onnxruntime does not run it in batches of 64"):
        run_all(graph, GOLDEN)


# Golden labels, of data that are not balanced


def golden_of(answers: list[int], targets: list[int]) -> ClassifierCertificate:
    logits = np.eye(2, dtype=np.float32)[answers]
    names = [tuple("ab"[index] for index in indices) for indices in (targets, answers)]
    return ClassifierCertificate({INPUT: GOLDEN}, {LOGITS: logits}, 1e-4, True, *names, temperature=1.0, encoded=())


def test_a_label_that_is_hardly_ever_told_is_no_false_alarm() -> None:
    """99 of 100 images are of label a, and the network mostly says so: 99% right, and golden images only by half."""
    targets = np.repeat([0, 1], [990, 10])
    quality = measure_quality(np.eye(2, dtype=np.float32)[np.zeros(1000, int)], targets, 1.0)
    assert quality.accuracy == 0.99
    assert quality.least_recalls == (pytest.approx(0.996, abs=1e-3), 0.0)
    told = check_golden(golden_of([0] * 16, [0, 1] * 8), ("a", "b"), quality.least_recalls)
    assert told == "8 of 16 golden images get their label"


def test_labels_that_ought_to_be_right_and_are_not_are_an_alarm() -> None:
    with pytest.raises(GoldenMismatch, match=r"8 of 16 golden images get their label, while .* at least 0\.97"):
        check_golden(golden_of([0] * 16, [0, 1] * 8), ("a", "b"), (0.99, 0.95))


# Figures, against values known from elsewhere


def test_mcnemar() -> None:
    assert mcnemar(7, 3) == pytest.approx(2 * sum((1, 10, 45, 120)) / 2**10)
    assert mcnemar(1300, 1200) == pytest.approx(0.0477, abs=1e-4)
    assert mcnemar(5, 5) == mcnemar(0, 0) == 1.0


def test_binomial_tail() -> None:
    assert binomial_tail(1, 3, 0.25) == pytest.approx((27 + 27) / 64)
    assert binomial_tail(3, 3, 0.25) == binomial_tail(0, 5, 0.0) == 1.0
    assert binomial_tail(2, 3, 1.0) == 0.0


def test_calibration_error() -> None:
    """Two bins: told 0.8, right 1 of 2; told 0.6, right 2 of 2."""
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]])
    assert calibration_error(probabilities, np.array([0, 1, 1, 1])) == pytest.approx((0.3 + 0.4) / 2)


def test_pixels_are_described_by_channel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3)).astype(np.uint8)
    told = describe_pixels(images)
    np.testing.assert_allclose(told["mean"], images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(told["std"], images.std((0, 1, 2)), rtol=1e-9)
