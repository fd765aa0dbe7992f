"""keras.onnx: a small CNN of Keras with batch norm and dropout on digits, through tf2onnx.

pip install -r benchmarks/peers/keras/requirements.txt tf2onnx scikit-learn; python tests/foreign/make_keras.py
"""

from pathlib import Path

import keras
import tensorflow as tf
import tf2onnx
from sklearn.datasets import load_digits

HERE = Path(__file__).parent

x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
keras.utils.set_random_seed(0)
network = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, padding="same"),
        keras.layers.BatchNormalization(),
        keras.layers.LeakyReLU(),
        keras.layers.Conv2D(32, 3, strides=2, padding="same"),
        keras.layers.BatchNormalization(),
        keras.layers.LeakyReLU(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
network.fit(x[:1400], y[:1400], epochs=20, batch_size=32, verbose=0)
print("accuracy on the last 397:", network.evaluate(x[1400:], y[1400:], verbose=0)[1])
signature = [tf.TensorSpec((None, 8, 8, 1), tf.float32, name="x")]
function = tf.function(lambda batch: network(batch, training=False), input_signature=signature)
tf2onnx.convert.from_function(function, input_signature=signature, output_path=str(HERE / "keras.onnx"), opset=17)
