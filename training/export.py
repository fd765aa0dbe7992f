"""Export in eval mode: from a run to one self-contained, byte-reproducible ``model.onnx`` that agrees with torch."""

from __future__ import annotations

import logging
import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from serving.artifact import INPUT, LOGITS, PROBABILITIES, Manifest
from serving.model import Floats, Model, load_model
from training.datasets import Dataset, Split
from training.errors import ExportRefused
from training.networks import scale_pixels
from training.run import Run
from training.train import predict_logits, split_evaluation

LOGIT_TOLERANCE = 1e-4
OPSET = 20


@dataclass(frozen=True)
class Agreement:
    """How torch and ONNX Runtime answer to the same test images.

    Attributes:
        images: how many were compared: the whole test set.
        max_logit_difference: the largest absolute difference of any logit.
        near_ties: images whose best two labels in torch are closer than the tolerance, so that either may win.
        changed: images with another best label in ONNX Runtime than in torch; near ties, all of them.
        accuracy: ONNX Runtime's on these images.
    """

    images: int
    max_logit_difference: float
    near_ties: int
    changed: int
    accuracy: float


class Deployed(nn.Module):
    """The graph that is served: pixels in, probabilities and logits out, everything between inside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, C) -> probabilities and logits, float32 (N, K)."""
        logits = self.network(scale_pixels(image))
        return torch.softmax(logits, dim=1), logits


class Mirrored(nn.Module):
    """A network's mean answer to an image and its mirror image, so that both get the same answer, bit for bit."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, C, H, W) -> logits (N, K)."""
        logits: Tensor = self.network(torch.cat([x, x.flip(3)]))  # one pass over both views costs less than two
        return logits.view(2, -1, logits.shape[1]).mean(0)


def export_run(run: Run, dataset: Dataset, mirrored: bool = False) -> tuple[bytes, Agreement]:
    """Export a run's best weights, and prove the result on the whole test set.

    Args:
        run: with its best weights.
        dataset: what it was trained on.
        mirrored: answer with the mean over an image and its mirror image.

    Returns:
        The artifact's bytes, and how well it agrees with torch.

    Raises:
        ExportRefused: a gate did not pass.
        RunError: the run has no usable weights.
    """
    network = run.config.build_network()
    run.load_weights(network)
    if mirrored:
        network = Mirrored(network)
    network.eval()
    graph = export_graph(network, run.config.shape)
    recipe = asdict(run.config.recipe)
    properties = {
        "network": recipe.pop("network"),
        "mirrored": mirrored,
        "training": {**recipe, "data_digest": run.config.data_digest},
    }
    manifest = Manifest(run.config.labels, dataset.contract, properties)
    agreement = measure_agreement(network, _load(seal(graph, manifest)), dataset.test)
    return seal(graph, replace(manifest, properties={**properties, "agreement": asdict(agreement)})), agreement


def export_graph(network: nn.Module, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """Export a network for pixels of a shape (height, width, channels): eval mode, any batch size, one file.

    Raises:
        ExportRefused: a part of the network is in train mode.
    """
    training = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if training:
        raise ExportRefused(f"not in eval mode: {', '.join(training)}; batch norm and dropout would act as in training")
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is not needed
        program = torch.onnx.export(
            Deployed(network).eval().cpu(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[PROBABILITIES, LOGITS],
            dynamic_shapes=({0: "batch"},),
        )
    assert program is not None
    return _strip(program.model_proto)


def _strip(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what names the exporting machine: stack traces, scopes and doc strings."""
    stripped = onnx.ModelProto()
    stripped.CopyFrom(graph)
    onnx.helper.set_model_props(stripped, {})
    parts = [stripped.graph, *stripped.graph.node, *stripped.graph.input, *stripped.graph.output]
    parts += [*stripped.graph.value_info, *stripped.graph.initializer]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return stripped


def seal(graph: onnx.ModelProto, manifest: Manifest) -> bytes:
    """The artifact's bytes: the graph with what it says about itself. Equal inputs give equal bytes."""
    sealed = onnx.ModelProto()
    sealed.CopyFrom(graph)
    onnx.helper.set_model_props(sealed, manifest.to_metadata())
    onnx.checker.check_model(sealed, full_check=True)
    return sealed.SerializeToString(deterministic=True)


def measure_agreement(network: nn.Module, model: Model, test: Split) -> Agreement:
    """Compare torch with the loaded artifact on every test image.

    Raises:
        ExportRefused: a logit differs by more than ``LOGIT_TOLERANCE``, or a label other than a near tie does.
    """
    expected = predict_logits(network, test).numpy()
    actual = _run_all(model, test)
    difference = float(np.abs(expected - actual).max())
    best_two = np.sort(expected, axis=1)[:, -2:]
    near_tie = best_two[:, 1] - best_two[:, 0] < LOGIT_TOLERANCE
    changed = expected.argmax(1) != actual.argmax(1)
    wrong = int((changed & ~near_tie).sum())
    if not difference <= LOGIT_TOLERANCE or wrong:  # written so that NaN refuses, too
        raise ExportRefused(
            f"onnxruntime disagrees with torch on the test images: logits differ by {difference:.2e} "
            f"(limit {LOGIT_TOLERANCE:g}), {wrong} of {len(test)} labels change; nothing was published"
        )
    right = float((actual.argmax(1) == test.targets).mean())
    return Agreement(len(test), difference, int(near_tie.sum()), int(changed.sum()), right)


def _run_all(model: Model, split: Split) -> Floats:
    return np.concatenate([model.run(images)[1] for images in split_evaluation(split.images)])


def _load(artifact: bytes) -> Model:
    """Load an artifact with the code that will serve it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(artifact)
        return load_model(path)
