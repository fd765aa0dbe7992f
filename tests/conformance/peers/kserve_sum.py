"""The network of the conformance suite, in the KServe SDK: docs/reference/conformance.md says how to run it."""

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.protocol.infer_type import InferOutput as Output

TENSORS = [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("left", "right", "sum", "product")]


class Sum(Model):
    """Adds and multiplies its two inputs."""

    def __init__(self) -> None:
        super().__init__("sum")
        self.ready = True

    async def get_input_types(self) -> list[dict]:
        """What goes in."""
        return TENSORS[:2]

    async def get_output_types(self) -> list[dict]:
        """What comes out."""
        return TENSORS[2:]

    def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
        """FP32 (N, 3) left and right -> sum and product."""
        arrays = {one.name: one.as_numpy() for one in payload.inputs}
        answers = {"sum": arrays["left"] + arrays["right"], "product": arrays["left"] * arrays["right"]}
        outputs: list[Output] = []
        for name, answer in answers.items():
            outputs.append(InferOutput(name=name, shape=list(answer.shape), datatype="FP32"))
            outputs[-1].set_data_from_numpy(answer, binary_data=False)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=outputs)


if __name__ == "__main__":
    ModelServer(http_port=8090, grpc_port=8091).start([Sum()])
