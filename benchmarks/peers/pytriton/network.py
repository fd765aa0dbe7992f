"""The network of benchmarks/speed/serve.py in PyTriton: Triton's core, its own gRPC, dynamic batching."""

import os

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


@batch
def infer(image: np.ndarray) -> dict[str, np.ndarray]:
    """Map UINT8 (N, H, W, C) to FP32 probabilities (N, labels)."""
    return {"probabilities": session.run(["probabilities"], {"image": image})[0]}


if __name__ == "__main__":
    with Triton(config=TritonConfig(http_port=8099, grpc_port=8100, metrics_port=8101)) as triton:
        triton.bind(
            model_name="network",
            infer_func=[infer, infer],
            inputs=[Tensor(name="image", dtype=np.uint8, shape=(32, 32, 3))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(10,))],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher()),
        )
        triton.serve()
