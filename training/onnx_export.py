"""Export a network to an ONNX graph in eval mode."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import onnxscript.optimizer
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.onnx import OnnxExporterError

from evalmode.artifact.tensors import INPUT, LOGITS, PROBABILITIES
from training.errors import ModuleInTrainMode, NetworkError
from training.networks import explain, list_causes, scale_pixels

OPSET = 20
MAX_NAMED = 5  # modules in an error


class Deployed(nn.Module):
    """The network as it is served, with scaling of pixels and softmax inside.

    Args:
        network: Turns images, float32 (N, C, H, W), into logits, float32 (N, K).
        temperature: Divides the logits before the softmax; above 0.
    """

    def __init__(self, network: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, C) -> probabilities and logits, float32 (N, K)."""
        logits = self.network(scale_pixels(image))
        return torch.softmax(logits / self.temperature, dim=1), logits


class Mirrored(nn.Module):
    """The mean of the logits for an image and its mirror image, which are therefore equal for both, bit for bit.

    Args:
        network: Turns images, float32 (N, C, H, W), into logits, float32 (N, K).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, C, H, W) -> logits, float32 (N, K)."""
        logits: Tensor = self.network(torch.cat([x, x.flip(3)]))  # one pass over both views costs less than two
        return logits.view(2, -1, logits.shape[1]).mean(0)


def export_graph(deployed: Deployed, shape: tuple[int, int, int]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Export a network to an ONNX graph for any batch size. Batch norm is not folded yet.

    Args:
        deployed: The network, in eval mode; it is moved to the CPU.
        shape: (height, width, channels) of the images.

    Returns:
        The graph, and for each layer of the network the name of its output tensor in the graph.

    Raises:
        ModuleInTrainMode: A module of the network is in train mode.
    """
    network = deployed.network
    check_eval_mode(network, "Does the module prevent eval() from taking effect?")
    graph = convert(deployed.eval().cpu(), torch.zeros((2, *shape), dtype=torch.uint8), [PROBABILITIES, LOGITS])
    return graph, dict(_list_outputs(graph))


def check_eval_mode(network: nn.Module, advice: str) -> None:
    """Check that a module and all its parts are in eval mode.

    Args:
        network: The module.
        advice: What the user can do, a sentence.

    Raises:
        ModuleInTrainMode: A part is in train mode.
    """
    training = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if training:
        others = f" and {len(training) - MAX_NAMED} more" if len(training) > MAX_NAMED else ""
        raise ModuleInTrainMode(
            f"not in eval mode: {', '.join(training[:MAX_NAMED])}{others}; batch norm and dropout would behave as in "
            f"training. {advice}"
        )


def convert(module: nn.Module, example: Tensor, outputs: list[str]) -> onnx.ModelProto:
    """Convert a module to an ONNX graph for any batch size, as it is.

    Args:
        module: Takes images and returns a tensor or a tuple of tensors; on the CPU, in eval mode.
        example: At least two images.
        outputs: Names of the tensors that it returns.

    Returns:
        The graph. Its input is ``image``.
    """
    with warnings.catch_warnings(), _without_output():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            optimize=False,  # it would fold batch norm in float32
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_shapes=({0: "batch"},),
        )
    assert program is not None
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    graph: onnx.ModelProto = program.model_proto
    return graph


def export_network(
    name: str, deployed: Deployed, shape: tuple[int, int, int]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Export a network as ``export_graph`` does, and describe an error of the exporter in one line.

    Args:
        name: The name of the network, for messages.
        deployed: The network, in eval mode; it is moved to the CPU.
        shape: (height, width, channels) of the images.

    Returns:
        The graph, and for each layer of the network the name of its output tensor in the graph.

    Raises:
        ModuleInTrainMode: A module of the network is in train mode.
        NetworkError: The exporter cannot export it.
    """
    with explain_export(name):
        return export_graph(deployed, shape)


@contextmanager
def explain_export(name: str) -> Iterator[None]:
    """Describe an error of the exporter in one line.

    Args:
        name: The name of the network, for the message.

    Raises:
        NetworkError: The exporter cannot export it.
    """
    try:
        yield
    except OnnxExporterError as error:
        raise NetworkError(f"{name} cannot be exported to ONNX: {_explain_export(error)}") from error


def _explain_export(error: OnnxExporterError) -> str:
    """Describe an error of the exporter in one line: the operator, or the place in the user's code."""
    cause = list(list_causes(error))[-1]
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(cause)):
        return f"ONNX has no counterpart of its operator {found[1]}; replace the layer that calls it"
    places = re.findall(r'File "([^"]+)", line (\d+), in', str(cause))
    if isinstance(cause, GuardOnDataDependentSymNode):
        where = f" ({Path(places[-1][0]).name}, line {places[-1][1]})" if places else ""
        return f"its code branches on the values of a tensor{where}; a graph has no branches, use torch.where"
    return explain(cause)


@contextmanager
def _without_output() -> Iterator[None]:
    """Suppress what the exporter logs and prints, such as that torchvision is missing. Its errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _list_outputs(graph: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """List each layer with the output of each of its operations, by the metadata of the exporter; the last is its own.

    An operation belongs to the layer that calls it and to those around that one: a batch norm of timm contains its
    activation, whose output is that of both.
    """
    for node in graph.graph.node:
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        scopes = metadata.get("pkg.torch.onnx.name_scopes", "[]").strip("[]").split(",")
        for scope in scopes[2:-1]:  # without the whole graph, the network, and the operation itself
            yield scope.strip("' ").removeprefix("network."), node.output[0]
