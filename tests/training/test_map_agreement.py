"""The activation map of a graph is compared with that of torch, although both round the feature map differently."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from evalmode.artifact.tensors import INPUT, LOGITS
from evalmode.certification.activation_map import add_activation_map
from training.agreement import Expected
from training.errors import NetworksDisagree
from training.map_agreement import measure_map_difference
from training.networks import scale_pixels

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


def make_network() -> nn.Sequential:
    """A convolution, global average pooling and a dense layer that does not use the first feature."""
    torch.manual_seed(0)
    convolution, dense = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
    nn.init.zeros_(dense.weight[:, 0])
    return nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense).eval()


def convert(network: nn.Sequential, change: float = 0.0, column: int = 0) -> onnx.ModelProto:
    """The network as a graph with an activation map, a feature changed by a share of its value."""
    arrays = {name: parameter.detach().numpy().copy() for name, parameter in network.named_parameters()}
    arrays["0.weight"][column] *= 1 + change
    arrays["0.bias"][column] *= 1 + change
    arrays |= {"scale": np.array(2 / 255, np.float32), "one": np.array(1, np.float32)}
    nodes = [
        helper.make_node("Cast", [INPUT], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["bytes", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "0.weight", "0.bias"], ["convolved"]),
        helper.make_node("Relu", ["convolved"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "4.weight", "4.bias"], [LOGITS], transB=1),
    ]
    image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ("batch", 8, 8, 3))
    logits = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ("batch", 5))
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "network", [image], [logits], weights)
    mapped = add_activation_map(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    assert mapped is not None
    return mapped


def expect(network: nn.Sequential) -> Expected:
    """What torch computes, with the usual tolerance."""
    with torch.no_grad():
        return Expected(network(scale_pixels(torch.from_numpy(IMAGES))).numpy(), 1e-5)


@pytest.mark.parametrize("change", [0.0, 1e-3])
def test_a_feature_map_that_is_rounded_differently_is_recognized(change: float) -> None:
    """Many layers of a deep network round by more than its logits do, which are means over features and positions."""
    network = make_network()
    difference = measure_map_difference(network, IMAGES, expect(network), convert(network, change))
    assert difference is not None
    assert difference < 1e-5


def test_a_map_of_other_features_is_refused() -> None:
    network = make_network()
    with pytest.raises(NetworksDisagree, match="the activation_map of the graph is not that of torch"):
        measure_map_difference(network, IMAGES, expect(network), convert(network, 5e-3, column=1))


def test_a_position_may_differ_by_more_than_the_logits_which_are_means_over_positions() -> None:
    network = make_network()
    graph, logits = convert(network, 1e-3, column=1), expect(network).logits
    difference = measure_map_difference(network, IMAGES, Expected(logits, 1.0), graph)
    assert difference is not None
    assert measure_map_difference(network, IMAGES, Expected(logits, difference / 5), graph) == difference
    with pytest.raises(NetworksDisagree, match="differ by"):
        measure_map_difference(network, IMAGES, Expected(logits, difference / 100), graph)


def test_a_feature_map_of_no_layer_leaves_the_map_out() -> None:
    network = make_network()
    assert measure_map_difference(network, IMAGES, expect(network), convert(network, 0.5)) is None
