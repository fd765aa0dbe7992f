"""A network of float16, whose input and output are float16, too: torch's exporter.

pip install torch onnx onnxscript pillow
python tests/foreign/makers/float16.py PHOTOS OUT
"""

from __future__ import annotations

import made
import small_torch
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse(network: nn.Sequential) -> nn.Sequential:
    """Merge batch norms into the convolutions before them, as is done before weights are rounded to float16."""
    layers: list[nn.Module] = []
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            layer = fuse_conv_bn_eval(layers.pop(), layer)
        layers.append(layer)
    return nn.Sequential(*layers)


photos, out = made.read_arguments()
images = small_torch.read_images(photos)
network = fuse(small_torch.make_network(images, photos)).half()
images = images.half()
with torch.inference_mode():
    probabilities = torch.cat([network(image[None]).float().softmax(dim=1) for image in images]).numpy()

torch.onnx.export(
    network,
    (images[:2],),
    out / "network" / "model.onnx",
    dynamic_shapes=({0: torch.export.Dim("batch")},),
    external_data=False,
)
(out / "network" / "labels.txt").write_text("\n".join(made.list_labels(photos)) + "\n")

# The file holds the size, the channels and the type. How pixels become numbers, and how images are resized, is in no
# file.
options = ["--scale", "0,1", "--resize", "squash", "--interpolation", "bicubic"]  # Pillow's resize is bicubic
made.write_made(photos, out, probabilities, ["torch", "onnx", "onnxscript", "pillow"], options)
