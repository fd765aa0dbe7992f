"""fastai: a Learner with a small network, exported by torch.onnx.export; labels are its vocabulary.

pip install fastai torch torchvision onnx onnxscript
python tests/foreign/makers/fastai_.py PHOTOS OUT
"""

from __future__ import annotations

import made
import torch
from fastai.data.transforms import Normalize
from fastai.layers import SimpleCNN
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, ResizeMethod
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders

SIZE = 64

photos, out = made.read_arguments()
set_seed(0, reproducible=True)
torch.set_num_threads(1)
loaders = ImageDataLoaders.from_folder(
    photos,
    valid_pct=0.2,
    seed=0,
    bs=20,
    num_workers=0,
    item_tfms=Resize(SIZE, ResizeMethod.Squish),
    batch_tfms=Normalize.from_stats(*imagenet_stats),
    device="cpu",
)
learner = Learner(loaders, SimpleCNN([3, 16, 32, 64, len(loaders.vocab)]), metrics=accuracy)
with learner.no_logging():
    learner.fit(8, 3e-3)
    test = loaders.test_dl(made.list_photos(photos), num_workers=0)
    probabilities = learner.get_preds(dl=test)[0].numpy()

torch.onnx.export(
    learner.model.eval(),
    (torch.zeros(2, 3, SIZE, SIZE),),
    out / "network" / "model.onnx",
    dynamic_shapes=({0: torch.export.Dim("batch")},),
    external_data=False,
)
(out / "network" / "labels.txt").write_text("\n".join(loaders.vocab) + "\n")

# The transforms are in the pickle that learner.export writes, which is not read: unpickling executes code.
mean, std = (",".join(map(str, one)) for one in imagenet_stats)
options = ["--scale", "0,1", "--mean", mean, "--std", std, "--resize", "squash", "--interpolation", "bilinear"]
made.write_made(photos, out, probabilities, ["fastai", "torch", "onnxscript"], options)
