"""torchvision: ShuffleNet v2, exported by torch.onnx.export.

    pip install torch torchvision onnx onnxscript
    python tests/foreign/makers/torchvision_.py PHOTOS OUT

Weights are random; batch norm has the statistics of the photos, and the last layer is fitted to them.
"""

from __future__ import annotations

import made
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms._presets import ImageClassification

SIZE, RESIZED = 64, 73  # torchvision's presets have 224 and 256; small images make a small test

photos, out = made.read_arguments()
labels, targets = made.list_labels(photos), made.list_targets(photos)
torch.manual_seed(0)
torch.set_num_threads(1)
network = torchvision.models.shufflenet_v2_x0_5(num_classes=len(labels))
transform = ImageClassification(crop_size=SIZE, resize_size=RESIZED)  # that of the weights of ShuffleNet
images = torch.stack([transform(Image.open(path).convert("RGB")) for path in made.list_photos(photos)])

with torch.inference_mode():
    for _ in range(30):
        network(images)  # batch norm collects statistics
    network.eval()
    last, network.fc = network.fc, torch.nn.Identity()
    weights, biases = made.fit_layer(network(images).numpy(), targets, len(labels))
    network.fc = last
    last.weight.copy_(torch.from_numpy(weights.T))
    last.bias.copy_(torch.from_numpy(biases))
    probabilities = torch.cat([network(image[None]).softmax(dim=1) for image in images]).numpy()

torch.onnx.export(
    network,
    (images[:2],),
    out / "network" / "model.onnx",
    dynamic_shapes=({0: torch.export.Dim("batch")},),
    external_data=False,
)
(out / "network" / "labels.txt").write_text("\n".join(labels) + "\n")

# torchvision writes nothing beside the weights: neither labels nor the transform are in any file. labels.txt is a habit
# of users. The transform is stated in the documentation of the weights, and has to be typed.
options = ["--scale", "0,1", "--mean", ",".join(map(str, transform.mean)), "--std", ",".join(map(str, transform.std))]
options += ["--resize", "crop", "--crop-ratio", str(SIZE / RESIZED), "--interpolation", transform.interpolation.value]
made.write_made(photos, out, probabilities, ["torchvision", "torch", "onnxscript"], options)
assert np.isfinite(probabilities).all()
