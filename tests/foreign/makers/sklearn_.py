"""scikit-learn: a multilayer perceptron on rows of pixels, with names as labels, through skl2onnx as it is by default.

    pip install scikit-learn skl2onnx pillow
    python tests/foreign/makers/sklearn_.py PHOTOS OUT

The file returns a name and a dictionary for each image (ZipMap).
"""

from __future__ import annotations

import made
import numpy as np
from PIL import Image
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SIZE = 16

photos, out = made.read_arguments()
paths = made.list_photos(photos)
images = [np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE))) for path in paths]
rows = np.stack(images).reshape(len(paths), -1).astype(np.float32) / 255
network = make_pipeline(StandardScaler(), MLPClassifier((32,), alpha=10.0, max_iter=30, random_state=0))
network.fit(rows, [path.parent.name for path in paths])
probabilities = network.predict_proba(rows)

file = to_onnx(network, rows[:1])
(out / "network" / "model.onnx").write_bytes(file.SerializeToString())

# The file holds the labels. It takes rows of 768 numbers: their shape as images, their scale, and how images are
# resized, are in no file.
options = ["--size", f"{SIZE}x{SIZE}", "--scale", "0,1", "--resize", "squash", "--interpolation", "bicubic"]
packages = ["scikit-learn", "skl2onnx", "pillow"]
made.write_made(photos, out, probabilities, packages, options, list(network.classes_))
