"""The network of benchmarks/speed/serve.py in MLServer."""

import os

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Network(MLModel):
    """An artifact's graph, on one thread."""

    async def load(self) -> bool:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """UINT8 image (N, H, W, C) -> FP32 probabilities (N, labels)."""
        pixels = NumpyCodec.decode_input(payload.inputs[0])
        (probabilities,) = self._session.run(["probabilities"], {"image": pixels})
        outputs = [NumpyCodec.encode_output("probabilities", probabilities)]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
