"""transformers: a small ViT or MobileNetV2 with its image processor, exported by optimum-cli.

    pip install optimum-onnx transformers torch torchvision onnx onnxruntime
    python tests/foreign/makers/transformers_.py PHOTOS OUT vit|vit-torchvision|mobilenet

vit is a ViT, whose image processor resizes the whole image; mobilenet a MobileNetV2, whose image processor resizes the
shorter side and crops. They resize by Pillow, vit-torchvision by torchvision, whose pixels depend on the processor of
the machine and have no contract with the same bits. The networks are trained for a few steps.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import made
import numpy as np
import torch
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTImageProcessorFast,
    pipeline,
)
from transformers.image_utils import load_image

kind = sys.argv.pop()
photos, out = made.read_arguments()
labels, targets = made.list_labels(photos), made.list_targets(photos)
torch.manual_seed(0)
torch.set_num_threads(1)
named = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
if kind.startswith("vit"):
    structure = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192}
    network = ViTForImageClassification(ViTConfig(image_size=64, patch_size=8, **structure, **named))
    make = ViTImageProcessorFast if kind == "vit-torchvision" else ViTImageProcessor
    processor = make(size={"height": 64, "width": 64})
else:
    config = MobileNetV2Config(image_size=96, depth_multiplier=0.25, finegrained_output=False, **named)
    network = MobileNetV2ForImageClassification(config)
    size, crop = {"shortest_edge": 110}, {"height": 96, "width": 96}
    processor = MobileNetV2ImageProcessor(size=size, crop_size=crop)

pictures = [load_image(str(path)) for path in made.list_photos(photos)]
images = torch.cat([processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures])
network.train()
optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
for _ in range(40):
    optimiser.zero_grad()
    network(images, labels=torch.from_numpy(targets)).loss.backward()
    optimiser.step()
network.eval()

classify = pipeline("image-classification", network, image_processor=processor)
rows = []
for path in made.list_photos(photos):
    scores = {one["label"]: one["score"] for one in classify(str(path), top_k=len(labels))}
    rows.append([scores[label] for label in labels])

with TemporaryDirectory() as folder:
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    command = Path(sys.executable).with_name("optimum-cli")
    given = ("--model", folder, "--task", "image-classification", str(out / "network"))
    subprocess.run([command, "export", "onnx", *given], check=True)
made.write_made(photos, out, np.array(rows), ["transformers", "optimum-onnx", "optimum", "torch"])
