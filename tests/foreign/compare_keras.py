"""Keras' ways to load an image and its ``preprocess_input``, and how far the options of certify for them are.

In an environment with Keras on TensorFlow, with the repository on the path and labelled photos in a folder:

    pip install tensorflow pillow simplejpeg onnx
    PYTHONPATH=. python tests/foreign/compare_keras.py PHOTOS

A line a loader: the options, and how many levels of 0 to 255 a pixel differs at most. A line a module of
``keras.applications``: the options, and the largest difference of a value relative to the largest value.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from evalmode.certification.preprocessing import Preprocessing
from evalmode.images.contract import PixelContract, Resize
from evalmode.images.pixels import decode_image
from evalmode.limits import OWN_IMAGES

SIDE = 96
PHOTOS = 50
PLAIN = partial(Resize, jpeg_scaling=False, keeps_exact_size=False, mode="squash")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MODES = {  # what preprocess_input does, in the words of its source, and the options for it
    "tf": Preprocessing((-1, 1)),
    "torch": Preprocessing((0, 1), **IMAGENET),
    "caffe": Preprocessing((0, 255), mean=(103.939, 116.779, 123.68), bgr=True),
    "none": Preprocessing((0, 255)),
}
MODULES = {  # of keras.applications
    "tf": "inception_resnet_v2 inception_v3 mobilenet mobilenet_v2 nasnet resnet_v2 xception",
    "torch": "densenet",
    "caffe": "resnet resnet50 vgg16 vgg19",
    "none": "convnext efficientnet efficientnet_v2 mobilenet_v3",
}
Load = Callable[[Path], Any]


def by_load_img(interpolation: str, path: Path) -> Any:
    """Load a photo by ``load_img``."""
    return np.asarray(keras.utils.load_img(path, target_size=(SIDE, SIDE), interpolation=interpolation))


def by_pillow(interpolation: Image.Resampling, path: Path) -> Any:
    """Load a photo by Pillow."""
    return np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), interpolation))


def by_tensorflow(method: str, antialias: bool, dct_method: str, path: Path) -> Any:
    """Load a photo by ``tf.io.decode_jpeg`` and ``tf.image.resize``."""
    image = tf.io.decode_jpeg(path.read_bytes(), channels=3, dct_method=dct_method)
    return tf.image.resize(image, (SIDE, SIDE), method=method, antialias=antialias).numpy()


def load_folder(folder: Path) -> dict[Path, Any]:
    """Load all photos by ``image_dataset_from_directory``."""
    found = keras.utils.image_dataset_from_directory(
        folder, image_size=(SIDE, SIDE), shuffle=False, batch_size=None, verbose=False
    )
    paths = found.file_paths
    return {Path(path): image.numpy() for path, (image, _) in zip(paths, found, strict=True)}


def list_loaders(folder: Path) -> dict[str, tuple[Load, Resize]]:
    """How code loads an image, and the resize for it; EXIF orientation and transparency are ignored by all."""
    accurate, sampled = "INTEGER_ACCURATE", PLAIN(antialias=False)
    return {
        "load_img": (partial(by_load_img, "nearest"), PLAIN(interpolation="nearest")),
        "load_img, bilinear": (partial(by_load_img, "bilinear"), PLAIN()),
        "Pillow, NEAREST": (partial(by_pillow, Image.Resampling.NEAREST), PLAIN(interpolation="nearest")),
        "Pillow, BILINEAR": (partial(by_pillow, Image.Resampling.BILINEAR), PLAIN()),
        "image_dataset_from_directory": (load_folder(folder).__getitem__, sampled),
        "tf.image.resize": (partial(by_tensorflow, "bilinear", False, ""), sampled),
        f"tf.image.resize, {accurate}": (partial(by_tensorflow, "bilinear", False, accurate), sampled),
        f"tf.image.resize, {accurate}, antialias": (partial(by_tensorflow, "bilinear", True, accurate), PLAIN()),
        f"tf.image.resize, {accurate}, nearest": (
            partial(by_tensorflow, "nearest", False, accurate),
            PLAIN(interpolation="nearest"),
        ),
    }


def compare_loader(load: Load, resize: Resize, photos: list[Path]) -> tuple[float, float]:
    """The largest and the mean difference of a value, in levels of 0 to 255."""
    contract = PixelContract(SIDE, SIDE, 3, resize, exif_orientation=False, background=None)
    differences = [
        np.abs(load(photo).astype(np.float64) - decode_image(photo.read_bytes(), contract, OWN_IMAGES))
        for photo in photos
    ]
    return max(float(one.max()) for one in differences), float(np.mean([one.mean() for one in differences]))


def compare_decoders(photos: list[Path], dct_method: str) -> int:
    """The largest difference between TensorFlow's and Pillow's decoded photos, in levels of 0 to 255."""
    return max(
        int(
            np.abs(
                tf.io.decode_jpeg(photo.read_bytes(), channels=3, dct_method=dct_method).numpy().astype(np.int16)
                - np.asarray(Image.open(photo).convert("RGB"))
            ).max()
        )
        for photo in photos
    )


def compare_arithmetic(module: Any, preprocessing: Preprocessing) -> float:
    """The largest difference of a value, relative to the largest value, for random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
    expected = module.preprocess_input(pixels.astype(np.float32))
    transform = preprocessing.to_transform(PixelContract(32, 32, 3), takes_bytes=False)
    ordered = pixels[..., ::-1] if transform.bgr else pixels
    values = ordered * np.array(transform.scale) + np.array(transform.shift)
    return float(np.abs(values - expected).max() / np.abs(expected).max())


def main() -> None:
    """Print a line for each loader, decoder and module."""
    folder = Path(sys.argv[1])
    photos = sorted(path for path in folder.glob("*/*") if path.suffix.lower() == ".jpg")
    photos = photos[:: max(1, len(photos) // PHOTOS)][:PHOTOS]
    print(f"keras {keras.__version__}, tensorflow {tf.__version__}, {len(photos)} photos")
    for dct_method in ("", "INTEGER_FAST", "INTEGER_ACCURATE"):
        print(f"decode_jpeg, dct_method={dct_method!r}: {compare_decoders(photos, dct_method)} levels at most")
    for name, (load, resize) in list_loaders(folder).items():
        largest, mean = compare_loader(load, resize, photos)
        print(f"{name}: {resize.describe()}: {largest:.2f} levels at most, {mean:.3f} on average")
    for mode, names in MODULES.items():
        for name in names.split():
            difference = compare_arithmetic(getattr(keras.applications, name), MODES[mode])
            print(f"{name}: {MODES[mode]}: {difference:.1e}")


if __name__ == "__main__":
    main()
