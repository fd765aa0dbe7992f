"""PaddlePaddle: MobileNet v1 of paddle.vision, through paddle.onnx.export and paddle2onnx.

pip install paddlepaddle paddle2onnx packaging pillow
python tests/foreign/makers/paddle_.py PHOTOS OUT
"""

from __future__ import annotations

import made
import numpy as np
import paddle
from paddle.vision import transforms
from PIL import Image

SIZE, RESIZED = 64, 73

photos, out = made.read_arguments()
labels, targets = made.list_labels(photos), made.list_targets(photos)
paddle.seed(0)
steps = transforms.Compose(
    [
        transforms.Resize(RESIZED),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)
images = paddle.stack([steps(Image.open(path).convert("RGB")) for path in made.list_photos(photos)])
network = paddle.vision.models.mobilenet_v1(scale=0.25, num_classes=len(labels))
optimizer = paddle.optimizer.Adam(3e-3, parameters=network.parameters())
for _ in range(12):
    for rows in paddle.randperm(len(images)).split(10):
        loss = paddle.nn.functional.cross_entropy(network(images[rows]), paddle.to_tensor(targets)[rows])
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
with paddle.no_grad():
    for _ in range(30):
        network(images)  # batch norm collects statistics of the trained weights
    network.eval()
    probabilities = np.concatenate([paddle.nn.functional.softmax(network(image[None])).numpy() for image in images])

spec = paddle.static.InputSpec([None, 3, SIZE, SIZE], "float32", "image")
paddle.onnx.export(network, str(out / "network" / "model"), input_spec=[spec])
(out / "network" / "labels.txt").write_text("\n".join(labels) + "\n")

# paddle2onnx writes neither labels nor the transforms. labels.txt is a habit of users.
options = ["--scale", "0,1", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
options += ["--resize", "crop", "--crop-ratio", str(SIZE / RESIZED), "--interpolation", "bilinear"]
made.write_made(photos, out, probabilities, ["paddlepaddle", "paddle2onnx", "pillow"], options)
