"""sklearn.onnx: a multilayer perceptron of scikit-learn on digits, through skl2onnx.

pip install scikit-learn skl2onnx pillow; python tests/foreign/make_sklearn.py
"""

from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).parent

x, y = load_digits(return_X_y=True)
x = x.astype(np.float32) / 16
network = MLPClassifier((32,), max_iter=60, random_state=0).fit(x[:1400], y[:1400])
print("accuracy on the last 397:", network.score(x[1400:], y[1400:]))
(HERE / "sklearn.onnx").write_bytes(to_onnx(network, x[:1], options={"zipmap": False}).SerializeToString())
