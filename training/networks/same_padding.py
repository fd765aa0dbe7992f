"""Convolutions with the "same" padding of Keras and TensorFlow.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class SameConv2d(nn.Conv2d):
    """A convolution with Keras' "same" padding: out = ceil(in / stride), zeros around the input.

    If the padding is odd, the extra row and column are added at the bottom and on the right. ``nn.Conv2d`` cannot do
    this: ``padding="same"`` does not support a stride, and ``padding=1`` pads the top and the left as well. As in every
    framework, the operation is a cross-correlation: the kernel is not flipped. Dilation is not supported.
    Source: Keras' ``compute_same_padding``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W) to (N, filters, ceil(H / stride), ceil(W / stride))."""
        top, bottom = _same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = _same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
        if (top, left) == (bottom, right):
            return functional.conv2d(x, self.weight, self.bias, self.stride, (top, left), groups=self.groups)
        padded = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the number of zeros before and after an axis."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
