"""The statements of the lecture on convolutional networks hold for the layers that are trained and exported."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from training.datasets import Dataset
from training.networks import scale_pixels
from training.networks.reference import Reference
from training.networks.same_padding import SameConv2d

PATCH = [[0.6, 0.2, 0.6], [0.1, -0.2, -0.3], [-0.5, -0.1, -0.3]]
EDGE = [[1, 1, 1], [0, 0, 0], [-1, -1, -1]]  # bright above, dark below


def convolve(image: object, kernel: object, stride: int = 1) -> torch.Tensor:
    """One channel through one filter without bias: (H, W) -> (H / stride, W / stride)."""
    weights = torch.as_tensor(kernel, dtype=torch.float32)
    height, width = weights.shape
    layer = SameConv2d(1, 1, kernel_size=(height, width), stride=stride, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weights)
        return layer(torch.as_tensor(image, dtype=torch.float32)[None, None])[0, 0]


def counting(size: int) -> torch.Tensor:
    """1, 2, 3, ... row by row in a square."""
    return torch.arange(1.0, size * size + 1).reshape(size, size)


def build_network(seed: int = 0) -> Reference:
    torch.manual_seed(seed)
    return Reference(1, 8, 8, 10)


# Convolution


def test_a_patch_that_matches_the_filter_gives_2_3() -> None:
    assert convolve(PATCH, EDGE)[1, 1].item() == pytest.approx(2.3)


def test_a_patch_that_matches_the_inverse_of_the_filter_gives_minus_2_3() -> None:
    assert convolve(-torch.tensor(PATCH), EDGE)[1, 1].item() == pytest.approx(-2.3)


def test_the_filter_is_not_flipped() -> None:
    asymmetric = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    unflipped = sum(p * k for row, line in zip(PATCH, asymmetric, strict=True) for p, k in zip(row, line, strict=True))
    flipped = sum(
        p * k for row, line in zip(PATCH, asymmetric[::-1], strict=True) for p, k in zip(row, line[::-1], strict=True)
    )
    assert flipped != pytest.approx(unflipped)
    assert convolve(PATCH, asymmetric)[1, 1].item() == pytest.approx(unflipped)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_filter_adds_its_bias_everywhere(stride: int) -> None:
    layer = SameConv2d(1, 1, kernel_size=3, stride=stride)
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.fill_(7)
        assert layer(torch.zeros(1, 1, 4, 4)).unique().tolist() == [7]


def test_every_filter_gives_one_feature_map_over_all_channels() -> None:
    layer = SameConv2d(3, 2, kernel_size=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1, 1], [1, 0, -1]]).reshape(2, 3, 1, 1))
        maps = layer(torch.tensor([2.0, 3, 5]).reshape(1, 3, 1, 1))
    assert maps.flatten().tolist() == [10, -3]


# Padding


def test_same_padding_at_stride_1_keeps_the_size_with_zeros_around() -> None:
    maps = convolve(torch.ones(5, 5), torch.ones(3, 3))
    assert maps.tolist() == [
        [4, 6, 6, 6, 4],
        [6, 9, 9, 9, 6],
        [6, 9, 9, 9, 6],
        [6, 9, 9, 9, 6],
        [4, 6, 6, 6, 4],
    ]


def test_same_padding_at_stride_2_pads_an_even_side_at_the_bottom_and_right_only() -> None:
    # 1 2 3 4 / 5 6 7 8 / 9 10 11 12 / 13 14 15 16: the first window begins at 1 and holds no zero.
    assert convolve(counting(4), torch.ones(3, 3), stride=2).tolist() == [[54, 45], [72, 54]]


def test_same_padding_at_stride_2_pads_an_odd_side_all_around() -> None:
    # 1 2 3 / 4 5 6 / 7 8 9
    assert convolve(counting(3), torch.ones(3, 3), stride=2).tolist() == [[12, 16], [24, 28]]


def test_an_even_kernel_pads_the_bottom_and_right_at_stride_1() -> None:
    assert convolve(counting(2), torch.ones(2, 2)).tolist() == [[10, 6], [7, 4]]


def test_height_and_width_are_padded_independently() -> None:
    # 1 2 3 4 / 5 6 7 8 / 9 10 11 12: height 3 needs a row above and below, width 4 a column at the right only.
    wide = torch.arange(1.0, 13).reshape(3, 4)
    assert convolve(wide, torch.ones(3, 3), stride=2).tolist() == [[24, 22], [48, 38]]


@pytest.mark.parametrize(
    ("kernel", "expected"), [([[1, 1, 1]], [[3, 6, 5], [9, 15, 11]]), ([[1], [1], [1]], [[5, 7, 9], [5, 7, 9]])]
)
def test_a_kernel_is_padded_along_its_own_sides(kernel: list[list[int]], expected: list[list[int]]) -> None:
    assert convolve([[1, 2, 3], [4, 5, 6]], kernel).tolist() == expected


@pytest.mark.parametrize(("size", "expected"), [(32, 16), (7, 4), (8, 4), (1, 1), (2, 1), (5, 3)])
def test_stride_2_halves_a_side_and_rounds_up(size: int, expected: int) -> None:
    assert convolve(torch.zeros(size, size), EDGE, stride=2).shape == (expected, expected)


def test_a_stride_larger_than_the_kernel_pads_nothing() -> None:
    assert convolve(counting(4), [[1]], stride=2).tolist() == [[1, 3], [9, 11]]


# Pooling


def test_max_pooling_takes_the_largest_of_each_window_channel_by_channel() -> None:
    channels = torch.stack([counting(4), -counting(4)])[None]
    assert functional.max_pool2d(channels, 2)[0].tolist() == [[[6, 8], [14, 16]], [[-1, -3], [-9, -11]]]


def test_average_pooling_takes_the_mean_of_each_window_channel_by_channel() -> None:
    channels = torch.stack([counting(4), 10 * counting(4)])[None]
    assert functional.avg_pool2d(channels, 2)[0].tolist() == [[[3.5, 5.5], [11.5, 13.5]], [[35, 55], [115, 135]]]


def test_a_small_shift_does_not_change_the_max_pooled_image() -> None:
    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 2, 2] = 1
    shifted = torch.roll(image, (1, 1), dims=(2, 3))
    assert not torch.equal(shifted, image)
    assert torch.equal(functional.max_pool2d(shifted, 2), functional.max_pool2d(image, 2))


# Batch norm


def test_batch_norm_in_training_is_algorithm_1_with_the_biased_variance() -> None:
    norm: Any = build_network().features[1].train()
    rng = np.random.default_rng(0)
    x = rng.normal(3, 0.05, (2, 32, 2, 2)).astype(np.float32)  # small enough for epsilon to matter
    gamma, beta = rng.normal(size=(2, 1, 32, 1, 1)).astype(np.float32)
    mean = x.mean((0, 2, 3), keepdims=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdims=True)
    expected = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(gamma.ravel()))
        norm.bias.copy_(torch.from_numpy(beta.ravel()))
        actual = norm(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_training_moves_the_moving_mean_one_hundredth_of_the_way() -> None:
    norm: Any = build_network().features[1].train()
    x = 5 * torch.randn(4, 32, 3, 3) + 2
    norm(x)
    torch.testing.assert_close(norm.running_mean, 0.01 * x.mean((0, 2, 3)))


def test_training_moves_a_moving_variance_and_not_a_standard_deviation() -> None:
    norm: Any = build_network().features[1].train()
    x = 5 * torch.randn(4, 32, 3, 3) + 2
    norm(x)
    torch.testing.assert_close(norm.running_var, 0.99 + 0.01 * x.var((0, 2, 3), correction=1))  # the unbiased variance
    assert (norm.running_var - (0.99 + 0.01 * x.std((0, 2, 3)))).min() > 0.05


def test_eval_mode_uses_the_moving_statistics_and_not_the_batch() -> None:
    norm: Any = build_network().features[1].eval()
    norm.running_mean.fill_(2)
    norm.running_var.fill_(9)
    x = torch.randn(4, 32, 3, 3)
    torch.testing.assert_close(norm(x), (x - 2) / (9 + 1e-3) ** 0.5)


def test_eval_mode_does_not_change_the_moving_statistics() -> None:
    network = build_network().eval()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.randn(4, 1, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_in_eval_mode_an_image_has_the_same_logits_alone_and_in_a_batch() -> None:
    network = build_network().eval()
    batch = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        alone = torch.cat([network(image[None]) for image in batch])
        torch.testing.assert_close(network(batch), alone, rtol=0, atol=1e-5)


def test_in_train_mode_the_logits_depend_on_the_other_images_of_the_batch() -> None:
    torch.manual_seed(0)
    network = Reference(1, 8, 8, 10, dropout=0).train()
    batch = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        assert (network(batch)[:8] - network(batch[:8])).abs().max() > 0.1


def test_the_exported_file_returns_the_same_bits_for_an_image_at_every_batch_size(exported, digits: Dataset) -> None:
    images = digits.test.images[:64]
    alone = [exported.model.classify(image[np.newaxis]) for image in images]
    for size in range(1, 65):
        probabilities, logits = exported.model.classify(images[:size])
        assert probabilities.tobytes() == np.concatenate([p for p, _ in alone[:size]]).tobytes()
        assert logits.tobytes() == np.concatenate([z for _, z in alone[:size]]).tobytes()


def test_the_exported_file_returns_the_same_bits_for_an_image_at_every_position_in_a_batch(
    exported, digits: Dataset
) -> None:
    images = digits.test.images[:7]
    expected = exported.model.classify(images)[1]
    for shift in range(1, 7):
        assert (
            np.roll(exported.model.classify(np.roll(images, shift, axis=0))[1], -shift, axis=0).tobytes()
            == expected.tobytes()
        )


# Dropout


def test_dropout_zeroes_its_share_of_units_in_training_and_scales_the_rest_up() -> None:
    dropout = next(layer for layer in Reference(1, 8, 8, 10, dropout=0.25).modules() if isinstance(layer, nn.Dropout))
    torch.manual_seed(0)
    units = dropout.train()(torch.ones(100_000))
    assert units.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (units == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_dropout_draws_different_units_at_every_step_of_training() -> None:
    network = build_network().train()
    batch = torch.randn(16, 1, 8, 8)
    assert not torch.equal(network(batch), network(batch))


def test_eval_mode_drops_nothing() -> None:
    network = build_network().eval()
    undropped = Reference(1, 8, 8, 10, dropout=0).eval()
    undropped.load_state_dict(network.state_dict())
    batch = torch.randn(16, 1, 8, 8)
    assert torch.equal(network(batch), undropped(batch))


def test_the_exported_file_has_no_operator_in_training_mode(exported) -> None:
    graph = onnx.load_from_string(exported.artifact)
    nodes = [*graph.graph.node, *(node for function in graph.functions for node in function.node)]
    kinds = {node.op_type for node in nodes}
    assert "Conv" in kinds  # the graph is that of the network
    assert not {kind for kind in kinds if kind == "Dropout" or kind.startswith("Random") or kind == "Bernoulli"}
    norms = [node for node in nodes if node.op_type == "BatchNormalization"]
    assert not [a for node in norms for a in node.attribute if a.name == "training_mode" and a.i]


# Input


def test_pixels_are_scaled_from_0_255_to_minus_1_1() -> None:
    scaled = scale_pixels(torch.tensor([0, 51, 204, 255], dtype=torch.uint8).reshape(1, 2, 2, 1))
    assert scaled.dtype == torch.float32
    assert scaled.flatten().tolist() == pytest.approx([-1, -0.6, 0.6, 1])
    assert (scaled.min().item(), scaled.max().item()) == (-1, 1)


def test_pixels_go_from_channels_last_to_channels_first() -> None:
    pixels = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 3)
    scaled = scale_pixels(pixels)
    assert scaled.shape == (2, 3, 3, 4)
    assert scaled[1, 2, 0, 3].item() == pytest.approx(pixels[1, 0, 3, 2].item() / 127.5 - 1)
