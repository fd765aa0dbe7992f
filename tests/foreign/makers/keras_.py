"""Keras 3: a small network with a Rescaling layer, channels last, through model.export and tf2onnx.

pip install keras tensorflow tf2onnx pillow
python tests/foreign/makers/keras_.py PHOTOS OUT
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import made
import numpy as np

SIZE = 64

photos, out = made.read_arguments()
labels, targets = made.list_labels(photos), made.list_targets(photos)
keras.utils.set_random_seed(0)
images = np.stack(
    [
        keras.utils.img_to_array(keras.utils.load_img(path, target_size=(SIZE, SIZE), interpolation="bilinear"))
        for path in made.list_photos(photos)
    ]
)
layers = [keras.Input((SIZE, SIZE, 3)), keras.layers.Rescaling(1 / 255)]
for width in (16, 32, 64):
    layers += [keras.layers.Conv2D(width, 3, strides=2, padding="same"), keras.layers.BatchNormalization(momentum=0.9)]
    layers += [keras.layers.ReLU()]
layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.2)]
network = keras.Sequential([*layers, keras.layers.Dense(len(labels), activation="softmax")])
network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
network.fit(images, targets, epochs=25, batch_size=20, verbose=0)
probabilities = network.predict(images, batch_size=20, verbose=0)

network.export(str(out / "network" / "model.onnx"), format="onnx", verbose=False)
(out / "network" / "class_names.txt").write_text("\n".join(labels) + "\n")

# The file holds the size, the channels, and that it rescales pixels itself. How load_img resizes is in no file.
options = ["--resize", "squash", "--interpolation", "bilinear"]
made.write_made(photos, out, probabilities, ["keras", "tensorflow", "tf2onnx", "pillow"], options)
