"""The network of the conformance suite, in MLServer: docs/reference/conformance.md says how to run it."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Sum(MLModel):
    """Adds and multiplies its two inputs."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """FP32 (N, 3) left and right -> sum and product."""
        arrays = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        outputs = [
            NumpyCodec.encode_output("sum", arrays["left"] + arrays["right"]),
            NumpyCodec.encode_output("product", arrays["left"] * arrays["right"]),
        ]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)
