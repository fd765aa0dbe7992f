"""The lecture's CNN in Keras, as in the lecture: from image files to model.keras in one process.

    KERAS/bin/python -m pip install -r benchmarks/peers/keras/requirements.txt
    KERAS/bin/python benchmarks/peers/keras/train.py --train train.txt --test test.txt --out FOLDER

The lists have one line per image: the label's index, a tab, the path. Images are RGB of one size.
``benchmarks/quality/train.py`` writes the lists and measures the time; nothing of evalmode is imported here.
TensorFlow keeps its defaults.
Source: Foster, Generative Deep Learning, 2nd ed., examples 2-15 to 2-17.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
from keras import layers
from PIL import Image

BATCH, LEARNING_RATE = 32, 5e-4


def main() -> None:
    """Decode, train, evaluate the test images once, and save; write the figures to figures.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    train_images, train_targets = read_images(arguments.train)
    test_images, test_targets = read_images(arguments.test)
    network = build(train_images.shape[1:], int(train_targets.max()) + 1)
    network.fit(train_images, train_targets, batch_size=BATCH, epochs=arguments.epochs, shuffle=True, verbose=2)
    _, accuracy = network.evaluate(test_images, test_targets, batch_size=1000, verbose=0)
    network.save(arguments.out / "model.keras")
    figures = {
        "test_accuracy": round(float(accuracy), 4),
        "weights": network.count_params(),
        "train_images": len(train_targets),
        "test_images": len(test_targets),
    }
    (arguments.out / "figures.json").write_text(json.dumps(figures))


def read_images(listing: Path) -> tuple[np.ndarray, np.ndarray]:
    """Decode every listed image on all cores, as evalmode does.

    Returns:
        float32 (N, H, W, 3) in [-1, 1], scaled before training as in the lecture, and the labels' indices (N,).
    """
    targets, paths = zip(*(line.split("\t", 1) for line in listing.read_text().splitlines()), strict=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = np.stack(list(pool.map(decode, paths))).astype(np.float32)
    images /= 127.5  # in place: a second copy would take half a gigabyte
    images -= 1.0
    return images, np.array(targets, np.int64)


def decode(path: str) -> np.ndarray:
    """Decode an image to uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def build(shape: tuple[int, ...], classes: int) -> keras.Model:
    """Build and compile the network: 592,554 weights for 32x32x3 and 10 classes."""
    inputs = x = keras.Input(shape)
    for filters, strides in ((32, 1), (32, 2), (64, 1), (64, 2)):
        x = layers.Conv2D(filters, kernel_size=3, strides=strides, padding="same")(x)
        x = layers.LeakyReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(128)(layers.Flatten()(x))
    x = layers.LeakyReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.5)(x)
    network = keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))
    optimizer = keras.optimizers.Adam(learning_rate=LEARNING_RATE)
    network.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return network


if __name__ == "__main__":
    main()
