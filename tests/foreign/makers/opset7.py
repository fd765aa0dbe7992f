"""A network of opset 7 and IR version 3, with its weights among the inputs: torch's old exporter.

    pip install torch onnx pillow
    python tests/foreign/makers/opset7.py PHOTOS OUT

Files like this are in older model zoos.
"""

from __future__ import annotations

import made
import onnx
import small_torch
import torch

photos, out = made.read_arguments()
images = small_torch.read_images(photos)
network = small_torch.make_network(images, photos)
with torch.inference_mode():
    probabilities = torch.cat([network(image[None]).softmax(dim=1) for image in images]).numpy()

path = out / "network" / "model.onnx"
torch.onnx.export(
    network,
    (images[:1],),
    path,
    opset_version=7,
    keep_initializers_as_inputs=True,
    input_names=["data"],
    output_names=["scores"],
    dynamo=False,
)
file = onnx.load(path)
file.ir_version = 3  # as exporters of that time wrote
onnx.save(file, path)
(out / "network" / "labels.txt").write_text("\n".join(made.list_labels(photos)) + "\n")

# The file holds the size and the channels. How pixels become numbers, and how images are resized, is in no file.
options = ["--scale", "0,1", "--resize", "squash", "--interpolation", "bicubic"]  # Pillow's resize is bicubic
made.write_made(photos, out, probabilities, ["torch", "onnx", "pillow"], options)
