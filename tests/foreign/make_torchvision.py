"""torchvision.onnx: ShuffleNet v2 of torchvision, its weights drawn at random, through torch's exporter.

pip install torch torchvision onnx onnxscript; python tests/foreign/make_torchvision.py
"""

from pathlib import Path

import onnx
import torch
import torchvision

HERE = Path(__file__).parent

torch.manual_seed(0)
network = torchvision.models.shufflenet_v2_x0_5(num_classes=3).eval()
torch.onnx.export(
    network,
    (torch.zeros(2, 3, 32, 32),),
    HERE / "torchvision.onnx",
    input_names=["input"],
    output_names=["output"],
    dynamic_shapes=({0: "batch"},),
    external_data=False,
)

model = onnx.load(HERE / "torchvision.onnx")
for part in (*model.graph.node, *model.graph.initializer, *model.graph.value_info):
    part.ClearField("metadata_props")  # the lines of this machine's files that each node comes from
onnx.save(model, HERE / "torchvision.onnx")
