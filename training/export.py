"""Export in eval mode: from a run to one self-contained, byte-reproducible ``model.onnx`` that carries its proof."""

from __future__ import annotations

import logging
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional

from serving.artifact import Manifest, open_artifact
from serving.certificate import INPUT, LOGITS, PROBABILITIES, Floats
from serving.drift import describe_images
from serving.model import ORT_VERSION, load_artifact, open_cpu_session
from serving.pixels import Pixels
from serving.proof.certify import certify, check_graph, choose_golden, draw_golden, strip
from serving.proof.checks import run_all
from serving.proof.figures import Quality, describe_pixels, measure_quality
from serving.proof.fold import fold_norms
from serving.proof.moments import check_moments
from serving.proof.quantize import check_gain, measure_gain, quantize
from training.datasets import Dataset, Split
from training.errors import FoldMismatch, LabelsReordered, ModuleInTrainMode, NetworksDisagree
from training.networks import scale_pixels
from training.run import EXACT, Run
from training.statistics import choose_images, recompute_statistics
from training.train import predict_logits, split_evaluation

LOGIT_TOLERANCE = 1e-4
OPSET = 20
TEMPERATURES = 0.05, 20.0  # where the best one is looked for
DISTRIBUTIONS = ("evalmode", "torch", "onnx", "onnxscript", "numpy", "pillow")


@dataclass(frozen=True)
class Agreement:
    """How torch and ONNX Runtime answer to the same test images.

    Attributes:
        images: how many were compared: the whole test set.
        max_logit_difference: the largest absolute difference of any logit.
        near_ties: images whose best two labels in torch are closer than the tolerance, so that either may win.
        changed: images with another best label in ONNX Runtime than in torch; near ties, all of them.
    """

    images: int
    max_logit_difference: float
    near_ties: int
    changed: int


class Deployed(nn.Module):
    """The graph that is served: pixels in, probabilities and logits out, everything between inside."""

    def __init__(self, network: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, C) -> probabilities and logits, float32 (N, K)."""
        logits = self.network(scale_pixels(image))
        return torch.softmax(logits / self.temperature, dim=1), logits


class Mirrored(nn.Module):
    """A network's mean answer to an image and its mirror image, so that both get the same answer, bit for bit."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, C, H, W) -> logits (N, K)."""
        logits: Tensor = self.network(torch.cat([x, x.flip(3)]))  # one pass over both views costs less than two
        return logits.view(2, -1, logits.shape[1]).mean(0)


def export_run(
    run: Run, dataset: Dataset, mirrored: bool = False, synthetic: bool = False
) -> tuple[bytes, Agreement, Quality]:
    """Export a run's best weights, and prove the result on the whole test set.

    Args:
        run: with its best weights.
        dataset: what it was trained on.
        mirrored: answer with the mean over an image and its mirror image.
        synthetic: draw golden images, so that no validation image travels in the file.

    Returns:
        The artifact's bytes, how well it agrees with torch, and how good it is.

    Raises:
        ExportRefused, ProofFailed: a gate did not pass.
        RunError: the run has no usable weights.
    """
    if run.config.labels != dataset.labels:
        raise LabelsReordered(
            f"the run was trained on the labels {', '.join(run.config.labels)}, the data has "
            f"{', '.join(dataset.labels)}: the same, in the same order, are wanted"
        )
    network = _load_network(run, dataset, mirrored)
    temperature = fit_temperature(predict_logits(network, dataset.val), dataset.val.targets)
    unfolded, outputs = export_graph(Deployed(network, temperature), run.config.shape)
    check_graph(unfolded)
    folded, norms = fold_norms(unfolded)
    norms = [replace(norm, name=norm.name.removeprefix("network.")) for norm in norms]
    fold_difference = check_fold(
        run_all(folded, dataset.test.images), run_all(unfolded, dataset.test.images, optimise=False)
    )
    graph = strip(onnxscript.optimizer.optimize(folded))
    check_graph(graph)
    actual = run_all(graph, dataset.test.images)
    agreement = measure_agreement(network, dataset.test, actual, outputs, graph)
    check_moments(graph, norms, split_evaluation(choose_images(dataset.train)))
    quality = measure_quality(actual, dataset.test.targets, temperature)
    recipe = asdict(run.config.recipe)
    properties = {
        "network": recipe.pop("network"),
        "mirrored": mirrored,
        "temperature": temperature,
        "training": {**recipe, "data_digest": run.config.data_digest},
        "agreement": asdict(agreement),
        "max_fold_difference": fold_difference,
        "quality": asdict(quality),
        "moments": {
            "pixels": describe_pixels(dataset.train.images),
            "images": describe_images(dataset.train.images),
            "layers": [norm.to_json() for norm in norms],
        },
        "versions": {
            **{name: version(name) for name in DISTRIBUTIONS},
            "onnxruntime": ORT_VERSION,
            "commit": _find_commit(),
        },
    }
    manifest = Manifest(run.config.labels, dataset.contract, properties)
    if synthetic:
        golden = draw_golden(dataset.contract, len(dataset.labels))
        names: tuple[str, ...] = ("",) * len(golden)
    else:
        chosen = choose_golden(dataset.val.targets, len(dataset.labels))
        golden = dataset.val.images[chosen]
        names = tuple(dataset.labels[target] for target in dataset.val.targets[chosen])
    return certify(graph, manifest, {INPUT: golden}, names, agreement.max_logit_difference), agreement, quality


def quantize_artifact(artifact: bytes, dataset: Dataset) -> tuple[bytes, str]:
    """An int8 variant of an artifact, and in words what it gives and takes.

    Raises:
        NotWorthIt: it is not fast enough here, or not accurate enough.
        ProofFailed: see ``certify``.
    """
    graph, manifest = open_artifact(artifact)
    assert manifest.certificate is not None  # export_run gave it one
    variant = strip(quantize(graph, dataset.train.images))
    check_graph(variant)
    told = dict(manifest.properties)
    for of_float32 in ("agreement", "max_fold_difference"):
        del told[of_float32]
    logits = run_all(variant, dataset.test.images)
    difference = float(np.abs(logits - run_all(variant, dataset.test.images, optimise=False)).max())
    quality = measure_quality(logits, dataset.test.targets, told["temperature"])
    properties = {
        **told,
        "quantized": "int8",
        "quality": asdict(quality),
        "moments": {**told["moments"], "layers": []},
    }
    bare = Manifest(manifest.labels, manifest.pixels, properties)
    sealed = certify(variant, bare, manifest.certificate.inputs, manifest.certificate.targets, difference)
    gain = measure_gain(load_artifact(artifact), load_artifact(sealed), dataset.test.images, dataset.test.targets)
    return sealed, check_gain(gain)


def _load_network(run: Run, dataset: Dataset, mirrored: bool) -> nn.Module:
    """The run's best weights with exact statistics, in eval mode."""
    network = run.config.build_network()
    if run.has_weights(EXACT) and not mirrored:
        run.load_weights(network, EXACT)
        return network.eval()
    run.load_weights(network)
    network = Mirrored(network) if mirrored else network
    recompute_statistics(network, dataset.train)  # a mirrored network's layers see both views
    return network


def fit_temperature(logits: Tensor, targets: np.ndarray[Any, Any]) -> float:
    """The temperature at which softmax(logits / temperature) is likeliest to give the targets.

    Where every answer is right, the smallest would be, and every image would be told to be certain: 1 instead.
    Source: Guo et al., On Calibration of Modern Neural Networks (1706.04599).
    """
    labels = torch.from_numpy(targets)
    if bool((logits.argmax(1) == labels).all()):
        return 1.0

    def loss(log_temperature: float) -> float:
        return functional.cross_entropy(logits.double() / np.exp(log_temperature), labels).item()

    return float(np.float32(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x)))


def export_graph(deployed: Deployed, shape: tuple[int, int, int]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Export for pixels of a shape (height, width, channels): eval mode, any batch size, batch norm not folded yet.

    Returns:
        The graph, and the name of the tensor that each layer of the network gives.

    Raises:
        ModuleInTrainMode: a part of the network is in train mode.
    """
    network = deployed.network
    training = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if training:
        raise ModuleInTrainMode(
            f"not in eval mode: {', '.join(training)}; batch norm and dropout would act as in training: does the "
            "module keep eval() from taking effect?"
        )
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is not needed
        program = torch.onnx.export(
            deployed.eval().cpu(),
            (example,),
            dynamo=True,
            verbose=False,
            optimize=False,  # it would fold batch norm, in float32
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[PROBABILITIES, LOGITS],
            dynamic_shapes=({0: "batch"},),
        )
    assert program is not None
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    graph = program.model_proto
    return graph, dict(_list_outputs(graph))


def _list_outputs(graph: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Each layer and the tensor it gives, as the exporter noted them."""
    for node in graph.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = [scope.strip("' ") for scope in notes.get("pkg.torch.onnx.name_scopes", "[]").strip("[]").split(",")]
        if len(scopes) > 2:
            yield scopes[-2].removeprefix("network."), node.output[0]  # the last is the operation itself


def check_fold(folded: Floats, unfolded: Floats) -> float:
    """The largest difference of a logit between the folded graph and the one that was not.

    Raises:
        FoldMismatch: it is more than ``LOGIT_TOLERANCE``.
    """
    difference = float(np.abs(folded - unfolded).max())
    if not difference <= LOGIT_TOLERANCE:  # written so that NaN refuses, too
        raise FoldMismatch(
            f"batch norm folded into convolutions gives other logits: by {difference:.2e} "
            f"(limit {LOGIT_TOLERANCE:g}); nothing was published"
        )
    return difference


def measure_agreement(
    network: nn.Module, test: Split, actual: Floats, outputs: dict[str, str], graph: onnx.ModelProto
) -> Agreement:
    """Hold onnxruntime's answers to the test images against torch's.

    Raises:
        NetworksDisagree: a logit differs by more than ``LOGIT_TOLERANCE``, or a label other than a near tie does.
    """
    expected = predict_logits(network, test).numpy()
    difference = float(np.abs(expected - actual).max())
    best_two = np.sort(expected, axis=1)[:, -2:]
    near_tie = best_two[:, 1] - best_two[:, 0] < LOGIT_TOLERANCE
    changed = expected.argmax(1) != actual.argmax(1)
    wrong = int((changed & ~near_tie).sum())
    if not difference <= LOGIT_TOLERANCE or wrong:
        raise NetworksDisagree(
            f"onnxruntime disagrees with torch on the test images: logits differ by {difference:.2e} "
            f"(limit {LOGIT_TOLERANCE:g}), {wrong} of {len(test)} labels change; "
            f"{_find_divergence(network, test.images[:8], outputs, graph)}; nothing was published"
        )
    return Agreement(len(test), difference, int(near_tie.sum()), int(changed.sum()))


@torch.no_grad()
def _find_divergence(network: nn.Module, images: Pixels, outputs: dict[str, str], graph: onnx.ModelProto) -> str:
    """Say which layer is the first that gives something else in onnxruntime than in torch."""
    told: dict[str, Tensor] = {}
    for name, layer in network.named_modules():
        layer.register_forward_hook(lambda _, __, output, name=name: told.setdefault(name, output))
    network(scale_pixels(torch.from_numpy(images)))
    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph)
    given = {tensor for node in graph.graph.node for tensor in node.output}
    layers = [  # in the order in which they finished
        name for name, output in told.items() if outputs.get(name) in given and isinstance(output, Tensor)
    ]
    if not layers:
        return "no layer can be told apart in the graph"
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=outputs[name]) for name in layers)
    actual = open_cpu_session(exposed.SerializeToString()).run(None, {INPUT: images})
    for name, other in zip(layers, actual, strict=True):
        difference = float(np.abs(told[name].numpy() - other).max())
        if not difference <= LOGIT_TOLERANCE:
            return f"the first layer that diverges is {name}, by {difference:.2e}"
    return "no layer diverges, so it is what follows the last one"


def _find_commit() -> str | None:
    """The commit of evalmode's own source, where it runs from a checkout."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", Path(__file__).name)  # not a user's repository around an installation
        return ask("describe", "--always", "--exclude=*", "--abbrev=40", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None
