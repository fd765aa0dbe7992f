"""The lecture's CNN with Keras' semantics.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from training.errors import NetworkError

BATCH_NORM_EPS = 1e-3  # Keras'; torch's default is 1e-5
BATCH_NORM_MOMENTUM = 0.01  # the new value's weight: Keras says .99, the old one's; torch's default is 0.1
LEAK = 0.3  # Keras' LeakyReLU; torch's default is 0.01
LAYERS = ((32, 1), (32, 2), (64, 1), (64, 2))  # filters and stride of each convolution
SMALLEST_SIDE = 4  # two convolutions of stride 2 halve it twice


class SameConv2d(nn.Conv2d):
    """A convolution with Keras' "same" padding: out = ceil(in / stride), zeros around the input.

    Where the padding is odd, the extra row and column go to the bottom and right; ``nn.Conv2d(padding="same")`` refuses
    a stride, and ``padding=1`` would pad top and left too. Like every framework's, it is a cross-correlation: the
    kernel is not flipped. Source: Keras' ``compute_same_padding``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, filters, ceil(H / stride), ceil(W / stride))."""
        top, bottom = _same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = _same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
        if (top, left) == (bottom, right):
            return functional.conv2d(x, self.weight, self.bias, self.stride, (top, left))
        padded = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(padded, self.weight, self.bias, self.stride)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Reference(nn.Module):
    """The lecture's CNN: four convolutions and a dense layer, each followed by batch norm and LeakyReLU, then dropout.

    592,554 values at 32x32x3 and 10 classes, 591,914 of them trained; the rest are moving means and variances (the
    lecture says moving standard deviation; every framework keeps the variance).
    Source: Foster, Generative Deep Learning, 2nd ed., example 2-16.

    Args:
        channels: 3 (RGB) or 1 (grey).
        height: pixels, at least 4.
        width: pixels, at least 4.
        classes: labels.
        factor: of the number of filters and units in each layer but the last.
        dropout: share of the dense layer's units set to 0 in training.
    """

    def __init__(
        self, channels: int, height: int, width: int, classes: int, factor: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if min(height, width) < SMALLEST_SIDE:
            raise NetworkError(
                f"images of {height}x{width} are too small for the reference network: at least "
                f"{SMALLEST_SIDE}x{SMALLEST_SIDE}, since two of its convolutions have stride 2"
            )
        layers: list[nn.Module] = []
        for filters, stride in ((round(count * factor), stride) for count, stride in LAYERS):
            convolution = SameConv2d(channels, filters, kernel_size=3, stride=stride)
            layers += [convolution, nn.BatchNorm2d(filters, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM), nn.LeakyReLU(LEAK)]
            channels, height, width = filters, -(-height // stride), -(-width // stride)
        units = round(128 * factor)
        self.features = nn.Sequential(*layers)  # (N, C, H, W) -> (N, 64, H/4, W/4)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, units),
            nn.BatchNorm1d(units, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM),
            nn.LeakyReLU(LEAK),
            nn.Dropout(dropout),
            nn.Linear(units, classes),
        )
        self.apply(initialise_like_keras)

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, C, H, W) in [-1, 1] -> logits (N, K)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def initialise_like_keras(module: nn.Module) -> None:
    """Glorot uniform weights, zero biases; torch's defaults differ in both."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
