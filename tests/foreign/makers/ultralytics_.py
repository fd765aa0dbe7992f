"""Ultralytics: a small YOLOv8-cls, exported by model.export.

    pip install ultralytics onnx onnxslim
    python tests/foreign/makers/ultralytics_.py PHOTOS OUT

Weights are random; batch norm has the statistics of the photos, and the last layer is fitted to them.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import made
import numpy as np
import torch
import yaml
from PIL import Image
from ultralytics import YOLO
from ultralytics.data.augment import classify_transforms
from ultralytics.utils import ROOT

SIZE = 96
SCALE = [0.33, 0.09375, 1024]  # depth, width and channels: narrower than the smallest of Ultralytics

photos, out = (path.absolute() for path in made.read_arguments())
labels, targets = made.list_labels(photos), made.list_targets(photos)
torch.manual_seed(0)
torch.set_num_threads(1)
structure = yaml.safe_load((ROOT / "cfg" / "models" / "v8" / "yolov8-cls.yaml").read_text())
with TemporaryDirectory() as folder:
    os.chdir(folder)
    Path("photos-cls.yaml").write_text(yaml.safe_dump({**structure, "nc": len(labels), "scales": {"n": SCALE}}))
    model = YOLO("photos-cls.yaml", task="classify")
    network = model.model
    network.names = dict(enumerate(labels))
    transform = classify_transforms(SIZE)
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in made.list_photos(photos)])
    with torch.no_grad():
        network.train()
        for _ in range(100):
            network(images)  # batch norm collects statistics, with a momentum of 0.03
        network.eval()
        last = network.model[-1].linear
        kept: list[torch.Tensor] = []
        last.register_forward_pre_hook(lambda layer, given: kept.append(given[0]))
        network(images)
        weights, biases = made.fit_layer(kept[0].numpy(), targets, len(labels))
        last.weight.copy_(torch.from_numpy(weights.T))
        last.bias.copy_(torch.from_numpy(biases))
        last._forward_pre_hooks.clear()
    model.save("photos.pt")

    model = YOLO("photos.pt")
    found = [model.predict(path, imgsz=SIZE, verbose=False)[0] for path in made.list_photos(photos)]
    probabilities = np.stack([one.probs.data.numpy() for one in found])
    exported = YOLO("photos.pt").export(format="onnx", imgsz=SIZE)
    Path(exported).rename(out / "network" / "photos.onnx")
made.write_made(photos, out, probabilities, ["ultralytics", "torch", "opencv-python"])
