"""timm: test_efficientnet, a small EfficientNet, saved by timm.models.save_for_hf, exported by timm.utils.onnx_export.

    pip install timm torch onnx onnxscript safetensors
    python tests/foreign/makers/timm_.py PHOTOS OUT

Weights are random; batch norm has the statistics of the photos, and the head is fitted to them.
"""

from __future__ import annotations

import made
import timm
import torch
from PIL import Image
from timm.utils.onnx import onnx_export

photos, out = made.read_arguments()
labels, targets = made.list_labels(photos), made.list_targets(photos)
torch.manual_seed(0)
torch.set_num_threads(1)
network = timm.create_model("test_efficientnet", num_classes=len(labels))
config = timm.data.resolve_model_data_config(network)
transform = timm.data.create_transform(**config, is_training=False)
images = torch.stack([transform(Image.open(path).convert("RGB")) for path in made.list_photos(photos)])

with torch.inference_mode():
    network.train()
    for _ in range(30):
        network(images)  # batch norm collects statistics
    network.eval()
    features = network.forward_head(network.forward_features(images), pre_logits=True)
    weights, biases = made.fit_layer(features.numpy(), targets, len(labels))
    last = network.get_classifier()
    last.weight.copy_(torch.from_numpy(weights.T))
    last.bias.copy_(torch.from_numpy(biases))
    probabilities = torch.cat([network(image[None]).softmax(dim=1) for image in images]).numpy()

folder = out / "network"
timm.models.save_for_hf(network, folder, model_config={"label_names": labels}, data_config=config)
(folder / "pytorch_model.bin").unlink()
onnx_export(network, str(folder / "model.onnx"), batch_size=2, input_size=config["input_size"], use_dynamo=True)
made.write_made(photos, out, probabilities, ["timm", "torch", "onnxscript"])
