"""The network of benchmarks/speed/serve.py in the KServe SDK."""

import os

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Network(Model):
    """The graph of an artifact, on one thread."""

    def __init__(self) -> None:
        super().__init__("network")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
        """Map a UINT8 image (N, H, W, C) to FP32 probabilities (N, labels)."""
        (probabilities,) = self._session.run(["probabilities"], {"image": payload.inputs[0].as_numpy()})
        output = InferOutput(name="probabilities", shape=list(probabilities.shape), datatype="FP32")
        output.set_data_from_numpy(probabilities, binary_data=True)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    ModelServer(http_port=8097, grpc_port=8098).start([Network()])
