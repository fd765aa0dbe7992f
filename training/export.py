"""Export in eval mode: from a run to one self-contained, byte-reproducible ``model.onnx`` that carries its proof."""

from __future__ import annotations

import copy
import io
import logging
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn import functional
from torch.onnx import OnnxExporterError

from serving.artifact import Manifest, open_artifact
from serving.certificate import INPUT, LOGITS, PROBABILITIES, Floats, largest_value, scale_tolerance, softmax
from serving.drift import describe_images
from serving.model import ORT_VERSION, load_artifact, open_cpu_session
from serving.pixels import Pixels
from serving.proof.certify import certify, check_graph, choose_golden, draw_golden, strip
from serving.proof.checks import run_all
from serving.proof.figures import Indices, Quality, calibration_error, describe_pixels, measure_quality
from serving.proof.fold import fold_norms
from serving.proof.moments import check_moments
from serving.proof.quantize import check_gain, measure_gain, quantize
from training.datasets import Dataset, Split
from training.errors import FoldMismatch, LabelsReordered, ModuleInTrainMode, NetworkError, NetworksDisagree
from training.evaluation import predict_logits, split_evaluation
from training.networks import explain, explain_errors, list_causes, scale_pixels
from training.run import BEST, EXACT, INITIAL, Run
from training.statistics import choose_images, choose_layers, list_moved, recompute_statistics

LOGIT_TOLERANCE, MAX_LOGIT_TOLERANCE = 1e-4, 1e-2  # of logits of the order of 1 to 10: see `scale_tolerance`
ROUNDING = 8.0  # times what torch itself rounds away: of a few images, while all test images are compared
DOUBLE_IMAGES, DOUBLE_PIXELS = 1_024, 2**21  # at most, that are run in float64: it takes several times as long
OPSET = 20
TEMPERATURES = 0.05, 20.0  # where the best one is looked for
FOLDS = 5  # of the validation images, each judged by the temperature that is fitted on the others
DISTRIBUTIONS = ("evalmode", "torch", "onnx", "onnxscript", "numpy", "pillow")


@dataclass(frozen=True)
class Agreement:
    """How torch and ONNX Runtime answer to the same test images.

    Attributes:
        images: how many were compared: the whole test set.
        max_logit_difference: the largest absolute difference of any logit.
        tolerance: what it was held to.
        near_ties: images whose best two labels in torch are closer than the tolerance, so that either may win.
        changed: images with another best label in ONNX Runtime than in torch; near ties, all of them.
    """

    images: int
    max_logit_difference: float
    tolerance: float
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
    run: Run,
    dataset: Dataset,
    mirrored: bool = False,
    synthetic: bool = False,
    on_temperature: Callable[[str], None] = lambda why: None,
) -> tuple[bytes, Agreement, Quality]:
    """Export a run's best weights, and prove the result on the whole test set.

    Args:
        run: with its best weights.
        dataset: what it was trained on.
        mirrored: answer with the mean over an image and its mirror image.
        synthetic: draw golden images, so that no validation image travels in the file.
        on_temperature: told where the temperature comes from, or why there is none.

    Returns:
        The artifact's bytes, how well it agrees with torch, and how good it is.

    Raises:
        ExportRefused, ProofFailed: a gate did not pass.
        RunError: the run has no usable weights.
        NetworkError: the network's code fails, or has changed since the run.
    """
    if run.config.labels != dataset.labels:
        raise LabelsReordered(
            f"the run was trained on the labels {', '.join(run.config.labels)}, the data has "
            f"{', '.join(dataset.labels)}: expected the same, in the same order"
        )
    name = run.config.recipe.network
    with explain_errors(name, "at export"):
        network = _load_network(run, dataset, mirrored)
        expected = expect_answers(network, dataset.test)
        temperature, why = choose_temperature(predict_logits(network, dataset.val), dataset.val.targets)
        on_temperature(why)
        unfolded, outputs = export_network(name, Deployed(network, temperature), run.config.shape)
        check_graph(unfolded)
        folded, norms = fold_norms(unfolded)
        norms = [replace(norm, name=norm.name.removeprefix("network.")) for norm in norms]
        fold_difference = check_fold(
            run_all(folded, dataset.test.images),
            run_all(unfolded, dataset.test.images, optimise=False),
            expected.tolerance,
        )
        graph = strip(onnxscript.optimizer.optimize(folded))
        check_graph(graph)
        actual = run_all(graph, dataset.test.images)
        agreement = measure_agreement(network, dataset.test, expected, actual, outputs, graph)
        recomputed = _list_recomputed(run, network, dataset, mirrored)
        images = split_evaluation(choose_images(dataset.train))
        check_moments(graph, [norm for norm in norms if norm.name in recomputed], images)
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
    exact = run.has_weights(EXACT) and not mirrored
    network = run.load_network(EXACT if exact else BEST)
    if exact:
        return network
    network = Mirrored(network) if mirrored else network
    # A mirrored network's layers see both views.
    recompute_statistics(network, dataset.train, moved=_list_moved(run, mirrored))
    return network


def _list_moved(run: Run, mirrored: bool) -> list[str]:
    """The batch norms whose statistics training moved, by their names in the network that is exported."""
    moved = list_moved(run.read_statistics(INITIAL), run.read_statistics(BEST))
    return [f"network.{name}" if mirrored else name for name in moved]


def _list_recomputed(run: Run, network: nn.Module, dataset: Dataset, mirrored: bool) -> set[str]:
    """The batch norms whose statistics are those of what they see, by their names in the network."""
    return set(choose_layers(network, dataset.train, _list_moved(run, mirrored)))


def fit_temperature(logits: Tensor, targets: Indices) -> float:
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


def choose_temperature(logits: Tensor, targets: Indices) -> tuple[float, str]:
    """The temperature that is fitted on validation images, if such a one lowers the error of images it has not seen.

    The images are dealt out to folds, and each fold is judged by the temperature that is fitted on the others. If that
    lowers the calibration error of all of them, the temperature is fitted on all. Test images have no part in it.

    Args:
        logits: of the validation images, float32 (N, K).
        targets: their labels.

    Returns:
        The temperature, 1 if there is none to use, and where it comes from in words.
    """
    if not logits.isfinite().all():
        return 1.0, "no temperature is fitted: logits of validation images are NaN or infinite"  # a gate refuses it
    if bool((logits.argmax(1) == torch.from_numpy(targets)).all()):
        return 1.0, "no temperature is fitted, since every validation image is classified right"
    temperatures = np.ones((len(targets), 1), np.float32)
    folds = np.random.default_rng(0).permutation(len(targets)) % FOLDS  # drawn: images come sorted by label
    for fold in range(FOLDS):
        if (others := folds != fold).any():
            temperatures[~others] = fit_temperature(logits[torch.from_numpy(others)], targets[others])
    without, error = (
        calibration_error(softmax(logits.numpy() / one), targets) for one in (np.float32(1), temperatures)
    )
    figures = f"{without:.4f} without, {error:.4f} with it, on validation images it was not fitted on"
    if not error < without:
        return 1.0, f"no temperature is used, since none lowers the calibration error: {figures}"
    return fit_temperature(logits, targets), f"a temperature lowers the calibration error: {figures}"


@dataclass(frozen=True, eq=False)
class Expected:
    """What torch answers, and how far from it another honest float32 calculation may be.

    Attributes:
        logits: float32 (N, K).
        tolerance: the largest difference of a logit.
    """

    logits: Floats
    tolerance: float


def expect_answers(network: nn.Module, split: Split) -> Expected:
    """Ask torch, in float32 about all images and in float64 about some.

    How far float32 takes torch from float64 is how ill-conditioned the network is: black and white images, or many
    layers, cost more digits than noise does. Honest calculations differ by a few times as much; faults by more.

    Args:
        network: in eval mode, on the CPU.
        split: the images.
    """
    logits = predict_logits(network, split).numpy()
    least, most = (scale_tolerance(bound, logits) for bound in (LOGIT_TOLERANCE, MAX_LOGIT_TOLERANCE))
    return Expected(logits, min(max(least, ROUNDING * _measure_rounding(network, split, logits)), most))


@torch.no_grad()
def _measure_rounding(network: nn.Module, split: Split, logits: Floats) -> float:
    """The largest difference between float32 logits and those in float64, of some images; 0 if torch cannot tell."""
    count = max(1, min(DOUBLE_IMAGES, DOUBLE_PIXELS // split.images[0, ..., 0].size))
    step = -(-len(split) // count)
    try:
        double = copy.deepcopy(network).double()
        batches = split_evaluation(split.images[::step])
        exact = torch.cat([double(scale_pixels(torch.from_numpy(batch)).double()) for batch in batches]).numpy()
    except MemoryError:
        raise
    except Exception:  # it cannot be copied, or holds to float32 in its code, where it may raise anything
        return 0.0
    return float(np.abs(logits[::step] - exact).max())


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
    with warnings.catch_warnings(), _without_log():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
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


def export_network(
    name: str, deployed: Deployed, shape: tuple[int, int, int]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """As ``export_graph``, which see, with a reason where the exporter cannot.

    Args:
        name: of the network.
        deployed: what is exported.
        shape: height, width and channels of the images.

    Raises:
        NetworkError: it cannot be exported.
    """
    try:
        return export_graph(deployed, shape)
    except OnnxExporterError as error:
        raise NetworkError(f"{name} cannot be exported to ONNX: {_explain_export(error)}") from error


def _explain_export(error: OnnxExporterError) -> str:
    """What the exporter does not say in one line: the operator, or the place in the network's code."""
    cause = list(list_causes(error))[-1]
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(cause)):
        return f"its operator {found[1]} has no counterpart there; replace the layer that calls it"
    places = re.findall(r'File "([^"]+)", line (\d+), in', str(cause))
    if isinstance(cause, GuardOnDataDependentSymNode):
        where = f" ({Path(places[-1][0]).name}, line {places[-1][1]})" if places else ""
        return f"its code branches on the values of a tensor{where}; a graph has no branches, use torch.where"
    return explain(cause)


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep back what the exporter logs and prints: torchvision is not needed, and errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _list_outputs(graph: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Each layer and the tensor it gives, as the exporter noted them."""
    for node in graph.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = [scope.strip("' ") for scope in notes.get("pkg.torch.onnx.name_scopes", "[]").strip("[]").split(",")]
        if len(scopes) > 2:
            yield scopes[-2].removeprefix("network."), node.output[0]  # the last is the operation itself


def check_fold(folded: Floats, unfolded: Floats, tolerance: float) -> float:
    """The largest difference of a logit between the folded graph and the one that was not.

    Args:
        folded: logits of the one, float32 (N, K).
        unfolded: of the other.
        tolerance: the largest difference that is rounding.

    Raises:
        FoldMismatch: it is more.
    """
    difference = float(np.abs(folded - unfolded).max())
    if not difference <= tolerance:  # written so that NaN refuses, too
        raise FoldMismatch(
            f"batch norm folded into convolutions gives other logits: by {difference:.2e} "
            f"(limit {tolerance:.2g}); nothing was published"
        )
    return difference


def measure_agreement(
    network: nn.Module,
    test: Split,
    expected: Expected,
    actual: Floats,
    outputs: dict[str, str],
    graph: onnx.ModelProto,
) -> Agreement:
    """Hold onnxruntime's answers to the test images against torch's.

    Args:
        network: to find where they part.
        test: the images.
        expected: torch's answers.
        actual: onnxruntime's, float32 (N, K).
        outputs: the name of the tensor in the graph that each layer of the network gives.
        graph: that onnxruntime ran.

    Raises:
        NetworksDisagree: a logit differs by more than the tolerance, or a label other than a near tie does.
    """
    difference, tolerance = float(np.abs(expected.logits - actual).max()), expected.tolerance
    best_two = np.sort(expected.logits, axis=1)[:, -2:]
    near_tie = best_two[:, 1] - best_two[:, 0] < tolerance
    changed = expected.logits.argmax(1) != actual.argmax(1)
    wrong = int((changed & ~near_tie).sum())
    if not difference <= tolerance or wrong:
        share = tolerance / largest_value(expected.logits)
        raise NetworksDisagree(
            f"onnxruntime disagrees with torch on the test images: logits differ by {difference:.2e} "
            f"(limit {tolerance:.2g}), {wrong} of {len(test)} labels change; "
            f"{_find_divergence(network, test.images[:8], outputs, graph, share)}; nothing was published"
        )
    return Agreement(len(test), difference, tolerance, int(near_tie.sum()), int(changed.sum()))


@torch.no_grad()
def _find_divergence(
    network: nn.Module, images: Pixels, outputs: dict[str, str], graph: onnx.ModelProto, share: float
) -> str:
    """Say which layer is the first that gives something else in onnxruntime than in torch.

    Args:
        network: in eval mode.
        images: to run, uint8 (N, H, W, C).
        outputs: the name of the tensor in the graph that each layer gives.
        graph: that onnxruntime ran.
        share: of a layer's largest value, the largest difference that is rounding.
    """
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
        if not difference <= share * largest_value(told[name].numpy()):
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
