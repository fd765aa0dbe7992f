"""8-bit weights that no processor's sums overflow with, and biases that make up for their rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from evalmode.artifact.tensors import INPUT, LOGITS
from evalmode.certification.int8_weights import choose_scales, has_depthwise, round_weights
from evalmode.runtime.session import open_cpu_session

CHANNELS = 16


def make_graph(groups: int = CHANNELS) -> onnx.ModelProto:
    """Build image -> floats -> 1x1 convolution -> ReLU -> 3x3 convolution -> mean of each channel."""
    rng = np.random.default_rng(0)
    values = {
        "expand": rng.normal(0, 0.01, (CHANNELS, 3, 1, 1)),
        "expand.bias": rng.normal(0, 1, CHANNELS),
        "filter": rng.normal(0, 1, (CHANNELS, CHANNELS // groups, 3, 3)),
        "filter.bias": rng.normal(0, 1, CHANNELS),
    }
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "expand", "expand.bias"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["positive"]),
        helper.make_node("Conv", ["positive", "filter", "filter.bias"], ["filtered"], group=groups),
        helper.make_node("GlobalAveragePool", ["filtered"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], [LOGITS]),
    ]
    graph = helper.make_graph(
        nodes,
        "depthwise",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ("batch", 12, 12, 3))],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ("batch", CHANNELS))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(graph: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    logits: np.ndarray = open_cpu_session(graph.SerializeToString()).run([LOGITS], {INPUT: images})[0]
    return logits


def read_weights(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in graph.graph.initializer}


def test_depthwise_convolutions_are_recognised() -> None:
    assert has_depthwise(make_graph())
    assert not has_depthwise(make_graph(1))
    assert not has_depthwise(make_graph(4))


@pytest.mark.parametrize("groups", [1, 4, CHANNELS])
def test_the_mean_output_stays(groups: int) -> None:
    graph = make_graph(groups)
    images = np.random.default_rng(1).integers(0, 256, (64, 12, 12, 3)).astype(np.uint8)
    before = graph.SerializeToString()
    rounded, _ = round_weights(graph, [images[:40], images[40:]])
    assert graph.SerializeToString() == before
    corrected = np.abs(run(rounded, images).mean(0) - run(graph, images).mean(0)).max()
    old = read_weights(graph)
    for one in rounded.graph.initializer:
        if one.name.endswith(".bias"):
            one.CopyFrom(numpy_helper.from_array(old[one.name], one.name))
    uncorrected = np.abs(run(rounded, images).mean(0) - run(graph, images).mean(0)).max()
    assert corrected < uncorrected / 4


def test_weights_are_whole_numbers_of_steps() -> None:
    rounded, scales = round_weights(make_graph(), [np.zeros((1, 12, 12, 3), np.uint8)])
    values = read_weights(rounded)
    assert scales.keys() == {"expand", "filter"}
    for name, chosen in scales.items():
        steps = values[name] / chosen.reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
        assert np.abs(steps).max() <= 127.001


def test_no_sum_of_two_products_overflows_16_bits() -> None:
    weights = np.random.default_rng(0).normal(0, 1, (8, 32, 1, 1))
    weights[0, :2] = 5.0  # two large weights in one channel
    weights[1] = 0.0
    scales = choose_scales(weights, depthwise=False)
    steps = np.sort(np.abs(np.round(weights / scales.reshape(-1, 1, 1, 1))).reshape(8, -1), axis=1)
    assert (255 * (steps[:, -1] + steps[:, -2])).max() < 2**15
    assert np.array_equal(choose_scales(weights, depthwise=True)[0], 5.0 / 127)
