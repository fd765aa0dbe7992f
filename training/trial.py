"""Test a user's network before the first epoch, so that all errors, even those of the export, appear within seconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnxscript.optimizer
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm

from evalmode.artifact.tensors import scale_tolerance
from evalmode.certification.certify import check_graph, strip
from evalmode.certification.fold import fold_norms
from evalmode.certification.metrics import gives_probabilities
from evalmode.certification.runs import run_all
from evalmode.errors import EvalmodeError, TrainMode
from evalmode.images.pixels import Pixels
from training.agreement import MAX_LOGIT_TOLERANCE
from training.datasets import Split
from training.errors import NetworkError
from training.evaluation import evaluate
from training.networks import check_logits, explain, lay_out, scale_pixels
from training.observe import observe_layers
from training.onnx_export import Deployed, export_network
from training.statistics import list_moved, recompute_statistics, sample_statistics
from training.tensors import save_tensors
from training.untouched import untouched

IMAGES = 4
REPEATS = 3  # two random factors can be as good as equal by chance, four cannot
NAMED = 3  # layers or weights that a message lists


def try_network(
    name: str,
    network: nn.Module,
    shape: tuple[int, int, int],
    classes: int,
    on_warning: Callable[[str], None],
    shared: bool = False,
) -> None:
    """Run a training step, the end of an epoch and an export with a few images of noise.

    The network and the random state of torch, numpy and Python stay the same, bit for bit.

    Args:
        name: Name of the network, for messages.
        network: The network, on the CPU.
        shape: (height, width, channels) of the images.
        classes: Number of labels.
        on_warning: Called with a sentence about a likely mistake.
        shared: Whether several processes train the network together.

    Raises:
        NetworkError: The network cannot be trained or exported.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise NetworkError(f"{name} is a torch.jit script, which cannot be exported to ONNX: return the module itself")
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), np.uint8)
    x = scale_pixels(torch.from_numpy(images))
    lay_out(network)  # as in training
    with _keep_random_state(), untouched(network):
        with _explained(f"the weights of {name} cannot be saved"):
            save_tensors(network.state_dict())
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with _explained(f"{name} fails in training on images of shape {tuple(x.shape)}"):
            _try_step(name, network, x, classes, shared)
        with _explained(f"{name} fails in eval mode on images of shape {tuple(x.shape)}"):
            logits = _try_evaluation(name, network, x, classes)
        with _explained(f"{name} fails at the end of an epoch on images of shape {tuple(x.shape)}"):
            _try_epoch_end(name, network, Split(images, np.arange(len(images)) % classes), before)
        if gives_probabilities(logits.numpy()):
            on_warning(
                f"{name} returns probabilities (a softmax at its end?): the loss expects logits, and training on "
                "probabilities is slow and inaccurate. Remove the softmax; the export adds one"
            )
        with _explained(f"{name} cannot be exported to ONNX"):
            _try_export(name, network, images, logits)


def _name_some(names: list[str]) -> str:
    """List the first few names, for a message."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


@contextmanager
def _keep_random_state() -> Iterator[None]:
    """Restore the random state of Python and numpy, from which a network may draw."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn every exception of the user's code or of the exporter into a `NetworkError` of one line."""
    try:
        yield
    except NetworkError:
        raise
    except EvalmodeError as error:
        raise NetworkError(f"{what}: {' '.join(str(error).split())}") from error
    except Exception as error:
        raise NetworkError(f"{what}: {explain(error)}") from error


def _try_step(name: str, network: nn.Module, x: Tensor, classes: int, shared: bool) -> None:
    """Run one forward and backward pass in train mode."""
    learned = {name: weights for name, weights in network.named_parameters() if weights.requires_grad}
    if not learned:
        count = sum(weights.numel() for weights in network.parameters())
        raise NetworkError(
            f"all {count:,} weights of {name} are frozen (requires_grad is False): there is nothing to learn; do not "
            "freeze its last layer"
        )
    network.train()
    for weights in learned.values():
        weights.grad = None
    logits = network(x)
    check_logits(name, logits, tuple(x.shape), classes, "in train mode ")
    if logits.requires_grad:
        functional.cross_entropy(logits, torch.arange(len(x)) % classes).backward()  # type: ignore[no-untyped-call]
    unreached = [name for name, weights in learned.items() if weights.grad is None]
    if len(unreached) == len(learned) or (shared and unreached):
        raise NetworkError(
            f"no gradient reaches {_name_some(unreached)} of {name}: is it unused, detached, or run under no_grad?"
            + (" Several processes need a gradient for every weight: set its requires_grad to False" if shared else "")
        )


@torch.no_grad()
def _try_evaluation(name: str, network: nn.Module, x: Tensor, classes: int) -> Tensor:
    """Run a batch and one image alone, several times in eval mode, compare the logits, and return the batch's."""
    network.eval()
    logits: Tensor = network(x)
    check_logits(name, logits, tuple(x.shape), classes, "")
    again, alone = torch.stack([network(x) for _ in range(REPEATS)]), network(x[:1])
    limit = scale_tolerance(MAX_LOGIT_TOLERANCE, logits.numpy())
    if float((again - logits).nan_to_num().abs().max()) > limit:
        raise NetworkError(
            f"{name} gives different results for the same images the second time, in eval mode: it draws random "
            "numbers. functional.dropout drops units in every mode: use nn.Dropout, or pass training=self.training"
        )
    if float((alone - logits[:1]).nan_to_num().abs().max()) > limit:
        layers = [layer for layer, m in network.named_modules() if isinstance(m, BatchNorm) and m.running_mean is None]
        why = "it mixes the images of a batch"
        if layers:
            why = f"{_name_some(layers)} keeps no moving statistics (track_running_stats=False)"
        raise NetworkError(f"{name} gives different results for an image alone and in a batch, in eval mode: {why}")
    return logits


def _try_epoch_end(name: str, network: nn.Module, split: Split, before: dict[str, Tensor]) -> None:
    """Run the end of an epoch and of the last epoch as ``train`` does, without files.

    Args:
        name: Name of the network, for messages.
        network: The network, after a training step.
        split: The images of the step.
        before: The state of the network before the step.

    Raises:
        NetworkError: The step changed the set of weights and buffers.
    """
    state = network.state_dict()
    if others := [one for one in (*before, *state) if one not in before or one not in state]:
        raise NetworkError(
            f"{name} has other weights or buffers after a step than before it: {_name_some(others)}; register them in "
            "__init__"
        )
    observe_layers(network, split.images)
    moved = list_moved(before, state)
    after = {name: tensor.clone() for name, tensor in state.items()}
    with sample_statistics(network, split, moved, len(split)):
        evaluate(network, split)
    recompute_statistics(network, split, moved=moved)
    network.load_state_dict(after)


def _try_export(name: str, network: nn.Module, images: Pixels, logits: Tensor) -> None:
    """Export as ``export_run`` does, without the parts that need trained weights."""
    unfolded, _ = export_network(name, Deployed(network), images.shape[1:])
    try:
        check_graph(unfolded)
    except TrainMode as error:
        layers = [
            f"{layer} ({type(module).__name__})"
            for layer, module in network.named_modules()
            if isinstance(module, InstanceNorm) and module.running_mean is not None
        ]
        if not layers:
            raise
        raise NetworkError(
            f"{name} cannot be exported: ONNX has no counterpart of {_name_some(layers)} with moving statistics; "
            "set track_running_stats=False"
        ) from error
    graph = strip(onnxscript.optimizer.optimize(fold_norms(unfolded)[0]))
    check_graph(graph)
    limit = scale_tolerance(MAX_LOGIT_TOLERANCE, logits.numpy())
    for count in (len(images), 1):
        difference = float(np.abs(run_all(graph, images[:count]) - logits[:count].numpy()).max())
        if difference > limit:
            raise NetworkError(
                f"{name} gives different results in onnxruntime and in torch: logits differ by {difference:.2e} (limit "
                f"{limit:.2g}); does its code depend on the values of its input?"
            )
