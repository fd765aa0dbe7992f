"""The network of benchmarks/speed/serve.py in mosec: HTTP, raw pixels in, raw probabilities out, dynamic batching."""

import os

import numpy as np
import onnxruntime
from mosec import Server, Worker


class Network(Worker):
    """The graph of an artifact, on one thread, in a process of its own."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def deserialize(self, data: bytes) -> np.ndarray:
        """Read UINT8 (H, W, C)."""
        return np.frombuffer(data, np.uint8).reshape(32, 32, 3)

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        """Return FP32 probabilities (labels) for each image."""
        return list(self._session.run(["probabilities"], {"image": np.stack(data)})[0])

    def serialize(self, data: np.ndarray) -> bytes:
        """Return little-endian FP32."""
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Network, num=os.cpu_count() or 1, max_batch_size=8, max_wait_time=1)
    server.run()
